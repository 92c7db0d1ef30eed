"""Every key of a config: what it may be (base/values.py), its default, and what it says.

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
    source: str = "scenes"  # scenes | folder | tar | arrayrecord | tfds
    path: str = ""  # folder, tar, arrayrecord; tfds: its data_dir
    name: str = ""  # tfds: the data set's name
    split: str = ""  # tfds, folder, tar: only the records of this split; "" takes all
    label_field: str = "label"  # folder, tar: key of metadata.jsonl that holds the class
    count: Positive = 100_000  # scenes: number of pictures
    objects: Positive = 1  # scenes: number of shapes in each picture
    relations: bool = False  # scenes: captions say which of two objects is where
    combinations: str = ""  # scenes: pairs of classes that occur, seen | unseen | "" for all
    seed: Seed = 0  # scenes: seed that the pictures are drawn with
    vocabulary: str = ""  # captions: a vocab.txt, or hf:NAME; "" is the source's own words
    size: values.Side = 256  # pixels of a side, after cropping
    crop: Literal["center", "random"] = "center"
    interpolation: str = "bicubic"
    flip: bool = True  # mirror at random
    # share of the records that is never trained on, for evaluation
    holdout: Annotated[float, Number(above=0, below=1)] = 0.05
    # processes that read; 0 reads in the training process itself
    workers: Annotated[int, Number(0, 1024, whole=True)] = 0
    # batches read at a time, in each process
    threads: Annotated[int, Number(1, 1024, whole=True)] = 8
    max_bad_fraction: Share = 0.01  # share of records that may fail to decode


class Steps(Group):
    total: Positive = 100_000
    log: Positive = 100
    eval: Positive = 5_000
    checkpoint: Positive = 1_000


class Eval(Group):
    records: Positive = 1_024
    batch_size: Positive = 32
    metrics: tuple[str, ...] = ()  # distances to the data: some of fd, kid, prc, dc, is; or none
    features: str = ""  # mobilenet (by default), inception, inception_clean
    weights: str = ""  # file of the weights of the feature network
    samples: Natural = 0  # images drawn for the metrics; 0: as many as eval.records
    every: Natural = 0  # steps between metrics, a multiple of steps.eval; 0: every evaluation


class Checkpoints(Group):
    keep: Positive = 2  # newest ones kept
    keep_every: Natural = 0  # each whose step this divides is kept for good, too; 0: none
    snapshots: Natural = 64  # of averages of kind power, spread over the training; 0: none


class Limits(Group):
    """Seconds that a phase may take before the process ends with exit code 42; 0: no limit."""

    start: Natural = 3_600
    compile: Natural = 7_200
    data: Natural = 600
    step: Natural = 1_800
    eval: Natural = 7_200
    save: Natural = 3_600
    stuck: Natural = 60  # of a step on several hosts while no host reports another phase


Axis = Positive | Literal[-1]


class Mesh(Group):
    """Number of devices along each axis; -1: all that the others leave."""

    data: Axis = -1  # splits batch rows
    fsdp: Axis = 1  # rows and weights
    spatial: Axis = 1  # the height of images
    tensor: Axis = 1  # the channels of attention, MLPs and residual blocks


class Common(Group):
    """What both stages share."""

    seed: Seed = 0
    plugins: tuple[str, ...] = ()  # modules of your own, which register conditioners, sources, ...
    init_from: str = ""  # a run; training starts from its weights
    init_grow: bool = False  # also where networks differ: what is new starts fresh, or at zero
    data: Data
    batch_size: Positive = 32  # over all devices and hosts
    accumulate: Positive = 1  # micro-batches per step
    steps: Steps
    eval: Eval
    checkpoints: Checkpoints
    limits: Limits
    # A run rolls back to an older checkpoint after more than max_bad_steps steps in a row with
    # values that are not finite, or if the logged error is more than max_loss_spike robust
    # deviations above its recent median (0 turns this off). After max_rollbacks rollbacks, further
    # bad steps end the run.
    max_bad_steps: Natural = 5
    max_loss_spike: Amount = 20.0
    max_rollbacks: Natural = 3
    check_replicas: Natural = 0  # steps between checks that replicated arrays are equal; 0: never
    mesh: Mesh
    offload: bool = False  # keep optimizer moments in the host's memory
    # of the computation; weights, optimizer and losses stay float32
    dtype: Literal["float32", "bfloat16"] = "float32"


class Optimizer(Group):
    """Of one network, see engine.optim.make; further options of the optimizer may be added."""

    name: str = "adamw"  # adam | adamw | muon
    lr: Amount = 1e-4
    schedule: str = "constant"  # constant | cosine | linear | inverse_sqrt
    warmup: Natural = 0
    start: Share = 0.0  # share of lr that the warm-up begins with; 0: 1 / warmup
    floor: Share = 0.0  # share of lr that the decay ends at
    length: Natural = 0  # step at which the decay ends, or inverse_sqrt begins; 0: the last one
    b1: Fraction = 0.9
    b2: Fraction = 0.999
    # of the first moment: bfloat16 halves its memory; "" is float32
    mu_dtype: Literal["", "float32", "bfloat16"] = ""
    weight_decay: Amount = 0.0
    clip: Amount = 0.0  # largest norm of the gradient; 0: no clipping
    average: str = "ema"  # ema | power: the average of the weights, for evaluation and sampling
    # its decay, 0: no average; of power its lengths: (0.05, 0.10)
    ema: Fraction | tuple[Fraction, ...] = 0.0


class Discriminator(Group):
    width: Positive = 64
    layers: Positive = 3
    norm: Literal["batch", "group", "actnorm"] = "batch"


class Lpips(Group):
    """Paths of the weights."""

    backbone: str = ""
    heads: str = ""


class FirstStageLoss(Group):
    """See stages/autoencode.py."""

    kl_weight: Amount = 1e-6
    codebook_weight: Amount = 1.0
    beta: Amount = 0.25
    legacy_vq: bool = True
    restart: Natural = 0  # vq: steps without use after which an entry is moved; 0: never
    perceptual_weight: Amount = 1.0
    pixel_loss: str = "l1"  # l1 | l2
    disc_weight: Amount = 0.5
    disc_start: Natural = 50_001
    disc_loss: str = "hinge"  # hinge | vanilla
    logvar: float = 0.0
    learn_logvar: bool = False
    perceptual_crop: Natural = 0  # pixels of a side of the crop that LPIPS sees; 0: all
    # weights of further terms, see stages/terms.py
    terms: dict[str, Amount] = dict(halved=0.0, turned=0.0)
    # the discriminator's, see stages/adversary.py
    disc_terms: dict[str, Amount] = dict(r1=0.0, lecam=0.0)
    latent_noise: Amount = 0.1  # with an encoder: most noise on latents, in deviations of theirs


class FirstStage(Common):
    """A first stage: the official KL-f4 autoencoder and its losses."""

    stage: str = "autoencode"
    encoder: str = ""  # the run of a first stage: train a decoder of its latents, and no encoder
    model: dict = dict(
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
    discriminator: Discriminator
    lpips: Lpips
    loss: FirstStageLoss
    optim: dict = {}


class Latents(Group):
    scale: Amount = 0.0  # factor that latents are multiplied by; 0: 1 / std, which is measured
    per_channel: bool = False  # measure mean and std of every channel, in place of one std
    mean: tuple[float, ...] = ()  # of every channel, given, beside std
    std: tuple[Above0, ...] = ()
    batches: Positive = 64  # that the std is measured over
    cache: str = ""  # folder that `encode` wrote: training reads its moments instead of images


class Process(Group):
    whole = False  # schedules and densities of your own have other keys

    schedule: str = "scaled_linear"
    timesteps: Annotated[int, Number(1, 100_000, whole=True)] = 1000
    beta_start: Annotated[float, Number(above=0, below=1)] = 0.0015
    beta_end: Annotated[float, Number(above=0, below=1)] = 0.0195
    prediction: str = "eps"  # eps | x0 | v | flow
    zero_terminal_snr: bool = False
    density: str = "uniform"  # that training draws timesteps from: uniform | shifted | logit_normal
    density_shift: Above0 = 1.0  # of shifted: above 1 noisy levels are trained more often
    density_mean: float = 0.0  # of logit_normal: the mean of log(sigma / alpha)
    density_std: Above0 = 1.0  # of logit_normal


class SecondStageLoss(Group):
    """See stages/diffuse.py."""

    distance: str = "l2"  # l1 | l2
    weight: str = "uniform"  # uniform | min_snr | v | flow | vlb
    gamma: Above0 = 5.0  # of weight min_snr
    cap: Above0 = 400.0  # largest weight of v and flow
    cond_dropout: Share = 0.0  # share of the batch that is trained under the null condition
    elbo_weight: Amount = 0.0  # of the variational bound, which is added to the loss
    logvar: float = 0.0  # log variance of the error, for every timestep
    learn_logvar: bool = False
    logvar_features: Natural = 0  # learned: linear in so many features of t; 0: one per timestep


class Distil(Group):
    """A student of few steps, see docs/few_steps.md."""

    method: str = ""  # consistency | distribution; "" trains plainly
    teacher: str = ""  # the run of a second stage; "": the data gives the direction
    # The teacher's, which the student learns, 0: that of its config.sample; or (low, high), and
    # the student is told any guidance between them when it draws.
    guidance: Amount | tuple[Amount, ...] = 0.0
    weaker: str = ""  # a run that the teacher's guidance leads away from (autoguidance)
    intervals: Positive = 50  # consistency: strides from noise to data, at the end of the training
    first: Positive = 8  # and at its beginning
    huber: Above0 = 1e-3  # deviation at which squares of errors turn to lengths
    calls: values.Positives = (1, 2, 4)  # distribution: numbers of calls to sample by
    critic_steps: Positive = 5  # steps of the critic for one of the student


class SecondStage(Common):
    """A second stage: the official LDM-4's UNet, unconditional."""

    stage: str = "diffuse"
    first_stage: str = ""  # a run, or "identity" for pixel diffusion (f = 1)
    latents: Latents
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
        attention_kernel="xla",  # xla | cudnn | auto: cuDNN on a GPU, where it takes the heads
        norm_kernel="xla",  # xla | pallas: GroupNorm and SiLU in one kernel; on one device only
        remat=False,  # recompute the activations inside blocks in the backward pass
        remat_saves="",  # what remat keeps: "" nothing | products: of matrices and convolutions
    )
    conditioners: dict = {}  # {label: dict(name=registered name, ...)}; labels are free
    process: Process
    loss: SecondStageLoss
    distil: Distil
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
        attention_kernel="xla",  # xla | cudnn | auto
        remat=False,  # recompute the activations inside layers in the backward pass
        remat_saves="",  # what remat keeps: "" nothing | products: of matrices
    )
    return defaults | changes


def class_condition(width: int) -> dict:
    """A class as one token. num_classes=-1 takes the data's; 0 classes make it unconditional."""
    return {"class": dict(name="class", num_classes=-1, width=width)}
