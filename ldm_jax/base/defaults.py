"""Every key of a config with its default; a recipe in configs/ changes a few of them.

Where a feature can be switched off, its empty value does so: 0, "", () or dict().
"""

from ml_collections import ConfigDict

from ldm_jax.base import config as config_lib


def common() -> ConfigDict:
    """What both stages share."""
    return ConfigDict(
        dict(
            seed=0,
            plugins=(),  # names of modules of your own, which register conditioners, sources, ...
            init_from="",  # a run; training starts from its weights
            init_grow=False,  # also where networks differ: what is new starts fresh, or at zero
            data=dict(
                source="scenes",  # scenes | folder | tar | arrayrecord | tfds
                path="",  # folder, tar, arrayrecord; tfds: its data_dir
                name="",  # tfds: the data set's name
                split="",  # tfds, folder, tar: only the records of this split; "" takes all
                label_field="label",  # folder, tar: key of metadata.jsonl that holds the class
                count=100_000,  # scenes: number of pictures
                objects=1,  # scenes: number of shapes in each picture
                relations=False,  # scenes: captions say which of two objects is where
                combinations="",  # scenes: pairs of classes that occur, seen | unseen | "" for all
                seed=0,  # scenes: seed that the pictures are drawn with
                vocabulary="",  # captions: a vocab.txt, or hf:NAME; "" is the source's own words
                size=256,  # pixels of a side, after cropping
                crop="center",  # center | random
                interpolation="bicubic",
                flip=True,  # mirror at random
                holdout=0.05,  # share of the records that is never trained on, for evaluation
                workers=0,  # processes that read; 0 reads in the training process itself
                threads=8,  # batches read at a time, in each process
                max_bad_fraction=0.01,  # share of records that may fail to decode
            ),
            batch_size=32,  # over all devices and hosts
            accumulate=1,  # micro-batches per step
            steps=dict(total=100_000, log=100, eval=5_000, checkpoint=1_000),
            eval=dict(
                records=1_024,
                batch_size=32,
                metrics=(),  # distances to the data: some of fd, kid, prc, dc, is; () measures none
                features="",  # mobilenet (by default), inception, inception_clean
                weights="",  # file of the weights of the feature network
                samples=0,  # images drawn for the metrics; 0: as many as eval.records
                every=0,  # steps between metrics, a multiple of steps.eval; 0: every evaluation
            ),
            # Newest checkpoints kept; each whose step keep_every divides is kept for good, too.
            # snapshots: of averages of kind power, spread over the training; 0: none.
            checkpoints=dict(keep=2, keep_every=0, snapshots=64),
            # Seconds that a phase may take before the process ends with exit code 42; 0: no limit.
            # stuck is the limit of a step on several hosts while no host reports another phase.
            limits=dict(start=3_600, compile=7_200, data=600, step=1_800, eval=7_200, save=3_600)
            | dict(stuck=60),
            # A run rolls back to an older checkpoint after more than max_bad_steps steps in a row
            # with values that are not finite, or if the logged error is more than max_loss_spike
            # robust deviations above its recent median (0 turns this off). After max_rollbacks
            # rollbacks, further bad steps end the run.
            max_bad_steps=5,
            max_loss_spike=20.0,
            max_rollbacks=3,
            check_replicas=0,  # steps between checks that replicated arrays are bit-equal; 0: never
            # Number of devices along each axis; -1: all that the others leave. data splits batch
            # rows; fsdp rows and weights; spatial the height of images; tensor the channels of
            # attention, MLPs and residual blocks.
            mesh=dict(data=-1, fsdp=1, spatial=1, tensor=1),
            offload=False,  # keep optimizer moments in the host's memory
            dtype="float32",  # of the computation; weights, optimizer and losses stay float32
        )
    )


def optimizer(**changes) -> dict:
    """The optimizer of one network, see engine.optim.make; further options of it may be added."""
    defaults = dict(
        name="adamw",  # adam | adamw | muon
        lr=1e-4,
        schedule="constant",  # constant | cosine | linear | inverse_sqrt
        warmup=0,
        start=0.0,  # share of lr that the warm-up begins with; 0: 1 / warmup
        floor=0.0,  # share of lr that the decay ends at
        length=0,  # step at which the decay ends, or inverse_sqrt begins; 0: the last one
        b1=0.9,
        b2=0.999,
        mu_dtype="",  # of the first moment: bfloat16 halves its memory; "" is float32
        weight_decay=0.0,
        clip=0.0,  # largest norm of the gradient; 0: no clipping
        average="ema",  # ema | power: the average of the weights, for evaluation and sampling
        ema=0.0,  # its decay, 0: no average; of power its lengths: (0.05, 0.10)
    )
    found = defaults | changes
    return found | {"ema": config_lib.one_or_several(found["ema"])}


def first_stage() -> ConfigDict:
    """A first stage: the official KL-f4 autoencoder and its losses."""
    config = common()
    config.stage = "autoencode"
    config.encoder = ""  # the run of a first stage: train a decoder of its latents, and no encoder
    config.model = dict(
        name="autoencoder",  # autoencoder | tiny, which has keys of its own
        bottleneck="kl",  # kl | noise | vq | lfq | none
        width=128,
        mult=(1, 2, 4),  # f = 2 ** (len(mult) - 1)
        blocks=2,
        attention=(),  # downsampling factors with attention
        mid_attention=True,
        z_channels=3,
        latent_channels=3,
        posterior_logvar=0.0,  # log variance that kl starts from and that noise keeps
        codebook_size=8192,  # vq
        shortcut="",  # linear | levels: a linear path beside the network, started from the data
        groups=32,  # of GroupNorm
        norm_kernel="xla",  # xla | pallas: GroupNorm and SiLU in one kernel; on one device only
        dropout=0.0,
        remat=False,  # recompute the activations inside blocks in the backward pass
        remat_saves="",  # what remat keeps: "" nothing | products: of matrices and convolutions
    )
    config.discriminator = dict(width=64, layers=3, norm="batch")
    config.lpips = dict(backbone="", heads="")  # paths of the weights
    config.loss = dict(
        kl_weight=1e-6,
        codebook_weight=1.0,
        beta=0.25,
        legacy_vq=True,
        restart=0,  # vq: steps without use after which an entry is moved; 0: never
        perceptual_weight=1.0,
        pixel_loss="l1",  # l1 | l2
        disc_weight=0.5,
        disc_start=50_001,
        disc_loss="hinge",  # hinge | vanilla
        logvar=0.0,
        learn_logvar=False,
        perceptual_crop=0,  # pixels of a side of the crop that LPIPS sees; 0: all
        terms=dict(halved=0.0, turned=0.0),  # weights of further terms, see stages/terms.py
        disc_terms=dict(r1=0.0, lecam=0.0),  # the discriminator's, see stages/adversary.py
        latent_noise=0.1,  # with an encoder: most noise on latents, in deviations of theirs
    )
    config.optim = dict(
        autoencoder=optimizer(name="adam", lr=5.4e-5, b1=0.5, b2=0.9),
        discriminator=optimizer(name="adam", lr=5.4e-5, b1=0.5, b2=0.9),
    )
    return config


def ldm() -> ConfigDict:
    """A second stage: the official LDM-4's UNet, unconditional."""
    config = common()
    config.stage = "diffuse"
    config.first_stage = ""  # a run, or "identity" for pixel diffusion (f = 1)
    config.latents = dict(
        scale=0.0,  # factor that latents are multiplied by; 0: 1 / std, which is measured
        per_channel=False,  # measure mean and std of every channel, in place of one std
        mean=(),  # of every channel, given, beside std
        std=(),
        batches=64,  # that the std is measured over
        cache="",  # folder that `encode` wrote: training reads its moments instead of images
    )
    config.model = dict(
        name="unet",  # a registered backbone; another one has other keys
        width=224,
        mult=(1, 2, 3, 4),
        blocks=2,
        attention=(8, 4, 2),  # downsampling factors with attention
        heads=0,  # give the number of heads, or the channels of each; the other one is 0
        head_channels=32,
        transformer_depth=1,
        cross_attention=False,
        dropout=0.0,
        scale_shift=False,
        resblock_updown=False,
        groups=32,  # of GroupNorm; groups of one channel would cancel the timestep's embedding
        attention_kernel="xla",  # xla | cudnn | auto: cuDNN on a GPU, where it takes the heads
        norm_kernel="xla",  # xla | pallas: GroupNorm and SiLU in one kernel; on one device only
        remat=False,  # recompute the activations inside blocks in the backward pass
        remat_saves="",  # what remat keeps: "" nothing | products: of matrices and convolutions
    )
    config.conditioners = dict()  # {label: dict(name=registered name, ...)}; labels are free
    config.process = dict(
        schedule="scaled_linear",
        timesteps=1000,
        beta_start=0.0015,
        beta_end=0.0195,
        prediction="eps",  # eps | x0 | v | flow
        zero_terminal_snr=False,
        density="uniform",  # that training draws timesteps from: uniform | shifted | logit_normal
        density_shift=1.0,  # of shifted: above 1 noisy levels are trained more often
        density_mean=0.0,  # of logit_normal: the mean of log(sigma / alpha)
        density_std=1.0,  # of logit_normal
    )
    config.loss = dict(
        distance="l2",  # l1 | l2
        weight="uniform",  # uniform | min_snr | v | flow | vlb
        gamma=5.0,  # of weight min_snr
        cap=400.0,  # largest weight of v and flow
        cond_dropout=0.0,  # share of the batch that is trained under the null condition
        elbo_weight=0.0,  # of the variational bound, which is added to the loss
        logvar=0.0,  # log variance of the error, for every timestep
        learn_logvar=False,
        logvar_features=0,  # learned: linear in so many features of t; 0: a number per timestep
    )
    config.distil = dict(  # a student of few steps, see docs/few_steps.md
        method="",  # consistency | distribution; "" trains plainly
        teacher="",  # the run of a second stage; "": the data gives the direction
        # The teacher's, which the student learns, 0: that of its config.sample; or (low, high), and
        # the student is told any guidance between them when it draws.
        guidance=config_lib.one_or_several(0.0),
        weaker="",  # a run that the teacher's guidance leads away from (autoguidance)
        intervals=50,  # consistency: strides from noise to data, at the end of the training
        first=8,  # and at its beginning
        huber=1e-3,  # deviation at which squares of errors turn to lengths
        calls=(1, 2, 4),  # distribution: numbers of calls that the student learns to sample by
        critic_steps=5,  # steps of the critic for one of the student
    )
    config.sample = dict(
        sampler="ddim",
        steps=50,
        eta=0.0,  # of sampler ddim: 0 is deterministic, 1 is ddpm
        guidance=1.0,
        spacing="exact",  # time grid
        rho=7.0,  # of spacing karras
        shift=1.0,  # of spacing shifted: above 1 more steps are spent on noisy levels
        rule="linear",  # how guidance combines the two predictions
        rescale=0.0,  # 0 to 1: how far guided predictions return to the spread of unguided ones
        interval=(),  # (low, high): noise levels sigma at which guidance acts; () is all
        clip=0.0,  # bound of the predicted x_0; 0 is none
        tile=0,  # side of a tile in pixels; 0: tiles only above twice the training size
    )
    config.optim = dict(denoiser=optimizer(lr=9.6e-5, ema=0.9999))
    return config


def dit(**changes) -> dict:
    """The `model` group of a diffusion transformer in the place of the UNet, by default XL/2."""
    defaults = dict(
        name="dit",
        width=1152,
        depth=28,
        heads=16,
        patch=2,  # side of a patch, in positions of the latent
        cross_attention=False,  # to tokens; a class can be added to the timestep instead
        qk_norm=False,  # queries and keys divided by their root mean square
        rope=False,  # queries and keys turned by their position, beside the sinusoids
        separate=False,  # every layer embeds the timestep by itself, as diffusers may
        freq_shift=1,  # of the timestep's sinusoids, as diffusers has it; officially 0
        time_offset=0,  # added to the timestep; 1 as diffusers' flow models have it
        mlp_eps=1e-6,  # of the norm before the MLP
        attention_kernel="xla",  # xla | cudnn | auto
        remat=False,  # recompute the activations inside layers in the backward pass
        remat_saves="",  # what remat keeps: "" nothing | products: of matrices
    )
    return defaults | changes


def class_condition(width: int) -> dict:
    """A class as one token. num_classes=-1 takes the data's; 0 classes make it unconditional."""
    return {"class": dict(name="class", num_classes=-1, width=width)}
