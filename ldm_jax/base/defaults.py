"""Every key of a config: what it may be (base/values.py), its default, and what it says.

docs/keys.md is made from it: the comment of a key is its sentence there (docs/keys.py).

A recipe in configs/ changes a few of them. Where a feature can be switched off, its empty value
does so: 0, "", () or dict(). What the keys of a group without types here may be, the thing says
that the group configures: the network that `model.name` names, a conditioner, stages.sampling.
"""

from typing import Annotated, Literal

from ml_collections import ConfigDict

from ldm_jax.base import config as config_lib
from ldm_jax.base import values
from ldm_jax.base.values import (
    Above0,
    Amount,
    Fraction,
    Group,
    Natural,
    Number,
    Positive,
    Seed,
    Share,
)


class Data(Group):
    # where records come from: scenes, folder, tar, parquet, arrayrecord, tfds, mix
    source: str = "scenes"
    path: str = ""  # folder, tar, parquet, arrayrecord: where the records lie; tfds: its data_dir
    name: str = ""  # tfds: the data set's name
    split: str = ""  # tfds, folder, tar, parquet: only the records of this split; "" takes all
    # folder, tar, parquet: key of the metadata, or column, that holds the class
    label_field: str = "label"
    # folder, tar, parquet: that holds the caption; "": caption, captions or text
    caption_field: str = ""
    # folder, tar on gs://: GiB of this machine's disk that keep what was read; 0 keeps nothing
    bucket_cache: Annotated[float, Number(0, 1e6)] = 32.0
    # mix: {name: dict(source=..., weight=1.0, further keys of that source)}
    mix: dict = {}
    image_field: str = ""  # parquet: column of the images; "": image, or the only one
    count: Positive = 100_000  # scenes: number of pictures
    objects: Positive = 1  # scenes: number of shapes in each picture
    relations: bool = False  # scenes: captions say where each of several objects is to the next
    combinations: str = ""  # scenes: pairs of classes that occur, "seen" or "unseen"; "": all
    seed: Seed = 0  # scenes: seed that the pictures are drawn with
    vocabulary: str = ""  # captions: a vocab.txt, or hf:OWNER/NAME; "" is the source's own words
    size: values.Side = 256  # pixels of a side, after cropping
    crop: Literal["center", "random"] = "center"  # where the square is cut from an image
    # crop=random: least side of the square, as a share of the short side; 1 always takes that whole
    crop_least: Annotated[float, Number(above=0, most=1)] = 1.0
    interpolation: str = "bicubic"  # nearest, bilinear, bicubic, lanczos or area: how it is resized
    flip: bool = True  # whether images are mirrored at random
    # share of the records that is never trained on, for evaluation
    holdout: Annotated[float, Number(above=0, below=1)] = 0.05
    # processes that read; 0 reads in the training process itself
    workers: Annotated[int, Number(0, 1024, whole=True)] = 0
    # batches read at a time, in each process
    threads: Annotated[int, Number(1, 1024, whole=True)] = 8
    max_bad_fraction: Share = 0.01  # share of records that may fail to decode


class Steps(Group):
    """Steps are those of the optimizer, whatever `accumulate` is."""

    total: Positive = 100_000  # at which the training ends
    log: Positive = 100  # between two lines of metrics.jsonl
    eval: Positive = 5_000  # between two evaluations, with their pictures
    checkpoint: Positive = 1_000  # between two checkpoints


class Eval(Group):
    """Of the averaged weights, on records that are held out; metrics: see docs/evaluation.md."""

    records: Positive = 1_024  # held-out records that are looked at
    batch_size: Positive = 32  # of the evaluation, over all devices and hosts
    metrics: tuple[str, ...] = ()  # distances to the data: some of fd, kid, prc, dc, is; or none
    features: str = ""  # network of the distances: mobilenet ("" too), inception, dinov2, clip, ...
    weights: str = ""  # file or name of the weights of the feature network; "": its public ones
    samples: Natural = 0  # images drawn for the metrics; 0: as many as eval.records
    every: Natural = 0  # steps between metrics, a multiple of steps.eval; 0: every evaluation


class Checkpoints(Group):
    keep: Positive = 2  # how many of the newest checkpoints are kept
    keep_every: Natural = 0  # a checkpoint whose step this divides is kept for good; 0: none is
    snapshots: Natural = 64  # with average power: snapshots of it over the training; 0: none


class Limits(Group):
    """Seconds that a phase may take before the process ends with exit code 42; 0: no limit."""

    start: Natural = 3_600  # all before the first step, but for compiling, and after the last
    compile: Natural = 7_200  # compiling a step
    data: Natural = 600  # waiting for a batch
    step: Natural = 1_800  # a training step
    eval: Natural = 7_200  # an evaluation
    save: Natural = 3_600  # writing a checkpoint
    stuck: Natural = 60  # a step on several hosts while no host reports another phase


class Track(Group):
    """A service that shows runs, beside the files of each; see docs/launch.md."""

    name: str = ""  # wandb or trackio, whose package has to be installed; "": none
    project: str = "ldm_jax"  # that the run is shown in
    entity: str = ""  # wandb: the account or team that the project is of; "": one's own


Axis = Positive | Literal[-1]


class Mesh(Group):
    """Number of devices along each axis; -1: all that the others leave."""

    data: Axis = -1  # splits batch rows
    fsdp: Axis = 1  # rows and weights
    spatial: Axis = 1  # the height of images
    tensor: Axis = 1  # the channels of attention, MLPs and residual blocks


class Common(Group):
    """What both stages share."""

    seed: Seed = 0  # of initial weights, order of the data and all that is drawn in training
    plugins: tuple[str, ...] = ()  # modules of your own, which register conditioners, sources, ...
    init_from: str = ""  # a run, or hf:OWNER/NAME; training starts from its weights
    init_grow: bool = False  # init_from may differ: what is new starts fresh, or at zero
    data: Data
    batch_size: Positive = 32  # over all devices and hosts
    accumulate: Positive = 1  # micro-batches of a step, which their gradients are averaged over
    steps: Steps
    eval: Eval
    checkpoints: Checkpoints
    limits: Limits
    track: Track
    # steps in a row with values that are not finite, after more of which a run rolls back to an
    # older checkpoint
    max_bad_steps: Natural = 5
    # robust deviations above its recent median at which the logged error makes a run roll back; 0:
    # it never does
    max_loss_spike: Amount = 20.0
    max_rollbacks: Natural = 3  # after so many, further bad steps end the run
    check_replicas: Natural = 0  # steps between checks that replicated arrays are equal; 0: never
    mesh: Mesh
    offload: bool = False  # keep optimizer moments in the host's memory
    # type of the computation; weights, optimizer and losses stay float32
    dtype: Literal["float32", "bfloat16"] = "float32"


class Optimizer(Group):
    """Of one network; further keys of the optimizer that `name` names may be added."""

    name: str = "adamw"  # the optimizer: adam, adamw or muon
    lr: Amount = 1e-4  # learning rate after the warm-up, at its highest
    schedule: str = "constant"  # of lr after it: constant, cosine, linear or inverse_sqrt
    warmup: Natural = 0  # steps in which lr rises along a line
    start: Share = 0.0  # share of lr that the warm-up begins with; 0: 1 / warmup
    floor: Share = 0.0  # share of lr that the decay ends at
    length: Natural = 0  # step at which the decay ends, or inverse_sqrt begins; 0: the last one
    b1: Fraction = 0.9  # decay of the mean of gradients, the first moment
    b2: Fraction = 0.999  # decay of the mean of their squares, the second moment
    # type of the first moment: bfloat16 halves its memory; "" is float32
    mu_dtype: Literal["", "float32", "bfloat16"] = ""
    weight_decay: Amount = 0.0  # decoupled, of kernels and tables; 0: none
    clip: Amount = 0.0  # largest norm of the gradient; 0: no clipping
    average: str = "ema"  # of the weights, for evaluation and sampling: ema or power
    # decay of average ema, 0: no average; of power its lengths: (0.05, 0.10)
    ema: Fraction | tuple[Fraction, ...] = 0.0


class Discriminator(Group):
    """Of patches; it is trained where loss.disc_weight is above 0."""

    width: Positive = 64  # channels of its first layer
    layers: Positive = 3  # that halve the resolution
    # batch: by the statistics of the whole batch; group: of each image; actnorm: a learned map
    norm: Literal["batch", "group", "actnorm"] = "batch"


class Lpips(Group):
    """Weights, which loss.perceptual_weight above 0 needs: files, or names that are fetched."""

    backbone: str = ""  # torchvision's: vgg16, alexnet or squeezenet
    heads: str = ""  # those of LPIPS beside it: lpips:vgg, lpips:alex or lpips:squeeze


class FirstStageLoss(Group):
    """Weights of the terms of the loss, see stages/autoencode.py."""

    kl_weight: Amount = 1e-6  # kl and noise: of the KL divergence, summed over a latent
    codebook_weight: Amount = 1.0  # vq and lfq: of the bottleneck's term
    beta: Amount = 0.25  # vq: weight of the commitment term, or of the other with legacy_vq
    legacy_vq: bool = True  # vq: beta weighs the codebook's term, as officially, not the latents'
    restart: Natural = 0  # vq: steps without use after which an entry is moved; 0: never
    perceptual_weight: Amount = 1.0  # of LPIPS, added to each pixel's error; 0 needs no weights
    pixel_loss: str = "l1"  # each pixel's error: l1 or l2
    # of the adversarial term, times the adaptive weight; 0 trains no discriminator
    disc_weight: Amount = 0.5
    disc_start: Natural = 50_001  # step at which the adversarial terms begin
    disc_loss: str = "hinge"  # of the discriminator: hinge or vanilla
    logvar: float = 0.0  # log variance of the reconstruction's error
    learn_logvar: bool = False  # learn it, from `logvar`; officially it stays there
    perceptual_crop: Natural = 0  # pixels of a side of the crop that LPIPS sees; 0: all
    # weights of further terms by their names
    terms: dict[str, Amount] = dict(halved=0.0, turned=0.0)
    # weights of further terms of the discriminator's loss by their names
    disc_terms: dict[str, Amount] = dict(r1=0.0, lecam=0.0)
    latent_noise: Amount = 0.1  # with an encoder: most noise on latents, in deviations of theirs


class FirstStage(Common):
    """A first stage: the official KL-f4 autoencoder and its losses."""

    stage: str = "autoencode"  # what is trained: "autoencode" is a first stage
    encoder: str = ""  # the run of a first stage: train a decoder of its latents, and no encoder
    # the network, which `name` names
    model: dict = dict(
        name="autoencoder",  # or tiny, which has keys of its own
        bottleneck="kl",  # between encoder and decoder: kl, noise, vq, lfq or none
        width=128,
        mult=(1, 2, 4),  # f = patch * 2 ** (len(mult) - 1) * fold
        patch=1,  # pixels of a side that a position of the highest level stands for
        fold=1,  # positions of a side of the lowest level that a position of the latent stands for
        blocks=2,
        attention=(),  # downsampling factors with attention
        mid_attention=True,
        z_channels=3,
        latent_channels=3,
        posterior_logvar=0.0,  # log variance that kl starts from and that noise keeps
        codebook_size=8192,  # entries of bottleneck vq
        shortcut="",  # linear, levels or folded: a path beside the network, started from the data
        groups=32,  # of GroupNorm
        attention_kernel="xla",  # auto: cuDNN on a GPU, pallas on a TPU, where they take the heads
        norm_kernel="xla",  # pallas: GroupNorm and SiLU in one kernel; on one device only
        dropout=0.0,
        remat=False,  # recompute the activations inside blocks in the backward pass
        remat_saves="",  # what remat keeps: "" nothing, products: of matrices and convolutions
    )
    discriminator: Discriminator
    lpips: Lpips
    loss: FirstStageLoss
    # autoencoder, discriminator
    optim: dict = {}


class Latents(Group):
    scale: Amount = 0.0  # factor that latents are multiplied by; 0: 1 / std, which is measured
    per_channel: bool = False  # measure mean and std of every channel, in place of one std
    mean: tuple[float, ...] = ()  # of every channel, given and not measured, beside std
    std: tuple[Above0, ...] = ()  # of every channel, given and not measured, beside mean
    batches: Positive = 64  # that the std is measured over
    cache: str = ""  # folder that `encode` wrote: training reads its moments instead of images


class Process(Group):
    whole = False  # schedules and densities of your own have other keys

    schedule: str = "scaled_linear"  # how much noise x_t holds at each timestep
    timesteps: Annotated[int, Number(1, 100_000, whole=True)] = 1000  # their number
    # of schedules from betas: the first beta
    beta_start: Annotated[float, Number(above=0, below=1)] = 0.0015
    # of schedules from betas: the last beta
    beta_end: Annotated[float, Number(above=0, below=1)] = 0.0195
    prediction: str = "eps"  # what the network predicts: eps, x0, v or flow
    zero_terminal_snr: bool = False  # of schedules from betas: the last x_t is pure noise
    density: str = "uniform"  # that training draws timesteps from: uniform, shifted, logit_normal
    density_shift: Above0 = 1.0  # of shifted: above 1 noisy levels are trained more often
    density_mean: float = 0.0  # of logit_normal: the mean of log(sigma / alpha)
    density_std: Above0 = 1.0  # of logit_normal: the deviation of log(sigma / alpha)


class SecondStageLoss(Group):
    """How errors are weighed, see stages/diffuse.py."""

    distance: str = "l2"  # of a prediction from its target: l1 or l2
    weight: str = "uniform"  # of each timestep: uniform, min_snr, v, flow or vlb
    gamma: Above0 = 5.0  # of weight min_snr
    cap: Above0 = 400.0  # largest weight of v and flow
    cond_dropout: Share = 0.0  # share of the batch that is trained under the null condition
    elbo_weight: Amount = 0.0  # of the variational bound, which is added to the loss
    logvar: float = 0.0  # log variance of the error, for every timestep
    learn_logvar: bool = False  # learn it, from `logvar`
    logvar_features: Natural = 0  # learned: linear in so many features of t; 0: one per timestep
    # weights of further terms by their names
    terms: dict[str, Amount] = dict(thumbnail=0.0, coarse=0.0)


class Distil(Group):
    """A student of few steps, see docs/few_steps.md."""

    method: str = ""  # consistency or distribution; "" trains plainly
    teacher: str = ""  # the run of a second stage; "": the data gives the direction
    # the teacher's, which the student learns, 0: that of its config.sample; or (low, high), and
    # the student is told any guidance between them when it draws
    guidance: Amount | tuple[Amount, ...] = 0.0
    weaker: str = ""  # a run that the teacher's guidance leads away from (autoguidance)
    intervals: Positive = 50  # consistency: strides from noise to data, at the end of the training
    first: Positive = 8  # consistency: strides at the beginning of the training
    huber: Above0 = 1e-3  # consistency: deviation at which squares of errors turn to lengths
    calls: values.Positives = (1, 2, 4)  # distribution: numbers of calls to sample by
    critic_steps: Positive = 5  # distribution: steps of the critic for one of the student
    critic_first: Natural = 100  # distribution: steps in which the critic learns alone


class Adapt(Group):
    """Weights learnt beside those of another run, see docs/adapters.md and docs/control.md."""

    name: str = ""  # lora or control; "" trains all weights
    base: str = ""  # the run of a second stage whose weights are adapted, and stay as they are
    rank: Positive = 8  # lora: of the update of each kernel
    alpha: Amount = 0.0  # lora: the update counts alpha / rank times; 0: once
    targets: tuple[str, ...] = ("attn",)  # lora: regexes, found in the paths of kernels it adapts
    keep: str = ""  # lora: the part of config.data.mix that stays as the base draws it; "": none
    keep_weight: Above0 = 3.0  # lora: how many times a row counts that is kept so


class SecondStage(Common):
    """A second stage: the official LDM-4's UNet, unconditional."""

    stage: str = "diffuse"  # what is trained: "diffuse" is a second stage
    first_stage: str = ""  # a run, hf:OWNER/NAME, or "identity" for pixel diffusion (f = 1)
    latents: Latents
    # the network, which `name` names
    model: dict = dict(
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
        attention_kernel="xla",  # auto: cuDNN on a GPU, pallas on a TPU, where they take the heads
        norm_kernel="xla",  # pallas: GroupNorm and SiLU in one kernel; on one device only
        remat=False,  # recompute the activations inside blocks in the backward pass
        remat_saves="",  # what remat keeps: "" nothing, products: of matrices and convolutions
    )
    # {label: dict(name=registered name, ...)}; labels are free, {} trains without a condition
    conditioners: dict = {}
    process: Process
    loss: SecondStageLoss
    distil: Distil
    adapt: Adapt
    # settings of the pictures that training draws, and the defaults of `sample`
    sample: dict = dict(
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
    # denoiser; with distil.method=distribution also critic
    optim: dict = {}


def common() -> ConfigDict:
    """What both stages share."""
    return ConfigDict(values.defaults(Common))


def optimizer(**changes) -> dict:
    """The optimizer of one network."""
    found = values.defaults(Optimizer) | changes
    return found | {"ema": config_lib.one_or_several(found["ema"])}


def first_stage() -> ConfigDict:
    """A first stage; see FirstStage."""
    config = ConfigDict(values.defaults(FirstStage))
    config.optim = dict(
        autoencoder=optimizer(name="adam", lr=5.4e-5, b1=0.5, b2=0.9),
        discriminator=optimizer(name="adam", lr=5.4e-5, b1=0.5, b2=0.9),
    )
    return config


def ldm() -> ConfigDict:
    """A second stage; see SecondStage."""
    found = values.defaults(SecondStage)
    found["distil"]["guidance"] = config_lib.one_or_several(found["distil"]["guidance"])
    config = ConfigDict(found)
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
        attention_kernel="xla",  # auto: cuDNN on a GPU, pallas on a TPU, where they take the heads
        remat=False,  # recompute the activations inside layers in the backward pass
        remat_saves="",  # what remat keeps: "" nothing, products: of matrices
    )
    return defaults | changes


def uvit(**changes) -> dict:
    """The `model` group of a U-ViT in the place of the UNet, by default H/2."""
    defaults = dict(
        name="uvit",
        width=1152,
        depth=28,  # layers beside the middle one, even
        heads=16,
        patch=2,  # side of a patch, in positions of the latent
        time_mlp=False,  # the timestep's sinusoids go through two layers
        conv_out=False,  # a 3x3 convolution of the image at the end
        position_std=0.02,  # deviation that the embeddings of places start with
        time_offset=0,  # added to the timestep; officially 1
        attention_kernel="xla",  # auto: cuDNN on a GPU, pallas on a TPU, where they take the heads
        remat=False,  # recompute the activations inside layers in the backward pass
        remat_saves="",  # what remat keeps: "" nothing, products: of matrices
    )
    return defaults | changes


def class_condition(width: int) -> dict:
    """A class as one token. num_classes=-1 takes the data's; 0 classes make it unconditional."""
    return {"class": dict(name="class", num_classes=-1, width=width)}
