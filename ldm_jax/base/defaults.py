"""Every key of a config with its default; a recipe in configs/ changes a few of them.

Where a feature can be switched off, its empty value does so: 0, "", () or dict().
"""

from ml_collections import ConfigDict


def common() -> ConfigDict:
    """What both stages share."""
    return ConfigDict(
        dict(
            seed=0,
            plugins=(),  # names of modules of your own, which register conditioners, sources, ...
            init_from="",  # a run whose weights this one starts from
            data=dict(
                source="scenes",  # scenes | folder | tar | arrayrecord | tfds
                path="",  # folder, tar, arrayrecord; tfds: its data_dir
                name="",  # tfds: the data set's name
                split="",  # of tfds, or of a metadata.jsonl that has the key; "" takes all
                label_field="label",  # folder, tar: the metadata's class
                count=100_000,  # scenes: how many
                objects=1,  # scenes: shapes in one picture
                relations=False,  # scenes: captions say which of two objects is where
                combinations="",  # scenes: pairs of classes, seen | unseen | "" for all
                seed=0,  # scenes: which ones
                vocabulary="",  # captions: a vocab.txt, or hf:NAME; "" is the source's own words
                size=256,  # pixels of a side, after cropping
                crop="center",  # center | random
                interpolation="bicubic",
                flip=True,  # mirror at random
                holdout=0.05,  # share of the records that is never trained on, for evaluation
                workers=0,  # reading processes; 0 reads in threads of this one
                threads=8,
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
                weights="",  # file of the features' weights
                samples=0,  # images drawn for them; 0: as many as records
                every=0,  # steps between them, a multiple of steps.eval; 0: at every evaluation
            ),
            checkpoints=dict(keep=2, keep_every=0),
            # Seconds after which a phase counts as stuck and the process ends with 42; 0: never.
            # stuck: the limit of a step of several hosts while no host reports another phase.
            limits=dict(start=3_600, compile=7_200, data=600, step=1_800, eval=7_200, save=3_600)
            | dict(stuck=60),
            max_bad_steps=5,  # steps in a row that may be skipped because a value was not finite
            max_loss_spike=20.0,  # a log line so many robust deviations above earlier ones; 0: off
            max_rollbacks=3,  # how often either is answered by going back; then the run ends
            check_replicas=0,  # steps between comparisons of replicated arrays; 0: never
            # Devices along each axis, -1: the rest. data: batch rows; fsdp: rows and weights;
            # spatial: the images' height; tensor: channels of attention, MLPs and residual blocks
            mesh=dict(data=-1, fsdp=1, spatial=1, tensor=1),
            offload=False,  # keep optimizer moments in the host's memory
            dtype="float32",  # of the computation; weights, optimizer and losses stay float32
        )
    )


def optimizer(**changes) -> dict:
    """How one player learns, see engine.optim.make; an optimizer's own options may be added."""
    defaults = dict(
        name="adamw",  # adam | adamw | muon
        lr=1e-4,
        schedule="constant",  # constant | cosine | linear
        warmup=0,
        start=0.0,  # share of lr that the warm-up begins with; 0: 1 / warmup
        floor=0.0,  # share of lr where the decay ends
        length=0,  # step where it ends; 0: the last one
        b1=0.9,
        b2=0.999,
        mu_dtype="",  # of the first moment: bfloat16 takes half; "" is float32
        weight_decay=0.0,
        clip=0.0,
        average="ema",  # of the weights, for evaluation and sampling
        ema=0.0,  # its decay; 0: no average
    )
    return defaults | changes


def first_stage() -> ConfigDict:
    """A first stage: the official KL-f4 autoencoder and its losses."""
    config = common()
    config.stage = "autoencode"
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
        posterior_logvar=0.0,  # log variance that kl starts from and noise keeps
        codebook_size=8192,  # vq
        shortcut="",  # a path beside the stack that starts from the data: "linear"
        groups=32,  # of GroupNorm
        norm_kernel="xla",  # xla | pallas: GroupNorm and SiLU as one kernel; on one device
        dropout=0.0,
        remat=False,  # compute the inside of blocks again in the backward pass
        remat_saves="",  # what remat keeps: "" nothing | products, of matrices and convolutions
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
        decoder_only=False,  # train the decoder alone, and keep the encoder of init_from
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
        scale=0.0,  # 0 measures 1 / std over so many batches
        batches=64,
        cache="",  # folder that `encode` wrote: training reads its moments instead of images
    )
    config.model = dict(
        name="unet",  # a registered backbone; another has other keys beside its name
        width=224,
        mult=(1, 2, 3, 4),
        blocks=2,
        attention=(8, 4, 2),  # downsampling factors with attention
        heads=0,  # number of heads; 0: as many as head_channels makes of the channels
        head_channels=32,
        transformer_depth=1,
        cross_attention=False,
        dropout=0.0,
        scale_shift=False,
        resblock_updown=False,
        groups=32,  # of GroupNorm; with one channel a group the network is deaf to the timestep
        attention_kernel="xla",  # xla | cudnn | auto: cuDNN's on a GPU for heads that it takes
        norm_kernel="xla",  # xla | pallas: GroupNorm and SiLU as one kernel; on one device
        remat=False,  # compute the inside of blocks again in the backward pass
        remat_saves="",  # what remat keeps: "" nothing | products, of matrices and convolutions
    )
    config.conditioners = dict()  # {label: dict(name=registered name, ...)}; labels are free
    config.process = dict(
        schedule="scaled_linear",
        timesteps=1000,
        beta_start=0.0015,
        beta_end=0.0195,
        prediction="eps",  # eps | x0 | v
        zero_terminal_snr=False,
        density="uniform",  # how timesteps are drawn in training
    )
    config.loss = dict(
        distance="l2",  # l1 | l2
        weight="uniform",  # uniform | min_snr | vlb
        gamma=5.0,  # min_snr's
        cond_dropout=0.0,  # share of a batch whose condition is replaced by the null condition
        elbo_weight=0.0,  # weight of the variational bound, which is added
        logvar=0.0,  # log variance of every timestep's error
        learn_logvar=False,
    )
    config.sample = dict(
        sampler="ddim",
        steps=50,
        eta=0.0,  # ddim's
        guidance=1.0,
        spacing="exact",
        rho=7.0,  # of spacing "karras"
        rule="linear",  # how guidance puts two predictions together
        rescale=0.0,  # how far guided predictions get the spread of unguided ones, 0 to 1
        interval=(),  # (low, high): noise levels sigma at which guidance acts; () is all
        clip=0.0,  # bound of the predicted x_0; 0: no bound
        tile=0,  # pixels of a tile's side; 0: tiles only for images above twice the training size
    )
    config.optim = dict(denoiser=optimizer(lr=9.6e-5, ema=0.9999))
    return config


def class_condition(width: int) -> dict:
    """One token a class; num_classes -1 takes the data's, without classes it is unconditional."""
    return {"class": dict(name="class", num_classes=-1, width=width)}
