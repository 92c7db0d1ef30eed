"""From a config to data, models and stages: the only place where keys meet arguments.

Nothing in the first half of this module touches a device.
"""

import inspect

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ldm_jax.base import config as config_lib
from ldm_jax.base import errors
from ldm_jax.data import conditions, latents, pipeline, sources, transforms
from ldm_jax.diffusion.process import make_process
from ldm_jax.engine import checkpoint, loop
from ldm_jax.metrics import scores
from ldm_jax.models import clip, conditioners, lpips, tiny  # noqa: F401  (some register themselves)
from ldm_jax.models.autoencoder import AUTOENCODERS
from ldm_jax.models.denoiser import Denoiser
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.models.unet import UNet
from ldm_jax.scenes import scenes  # noqa: F401  (registers itself)
from ldm_jax.stages import autoencode, diffuse
from ldm_jax.stages.codec import Codec
from ldm_jax.stages.sampling import Sampling
from ldm_jax.weights.readers import READERS

IDENTITY = "identity"


read_config = config_lib.of_run


def open_source(data: ConfigDict):
    """The data source that `config.data` names; it takes the keys that are its arguments."""
    opener = sources.SOURCES.get(data.source)
    wanted = inspect.signature(opener).parameters
    return sources.open_source(data.source, **{k: v for k, v in data.items() if k in wanted})


def resolve(config: ConfigDict, source) -> ConfigDict:
    """Fills in what the data decides of conditioners: keys that are -1, and what goes with them.

    Data that cannot say a condition (no classes) takes its conditioner out of the recipe. A second
    stage that starts from another's weights takes that one's first stage where it names no run.
    """
    with config.unlocked():
        open_end = config.stage == "diffuse" and is_recipe(config.first_stage or ".py")
        if config.init_from and open_end:
            config.first_stage = read_config(config.init_from).get("first_stage", "")
        for name, kwargs in dict(config.get("conditioners", {})).items():
            if conditions.OPEN in kwargs.values():
                fields = conditioners.CONDITIONERS.get(kwargs["name"]).fields
                decided = conditions.decide(fields, source, config.data)
                if decided is None:
                    del config.conditioners[name]
                else:
                    kwargs.update(decided)
    return config


def make_data(
    config: ConfigDict, source, fields, share: dict | None = None, cache=None
) -> loop.Data:
    """Training and held-out batches of this host, or of `share`, {"host": i, "hosts": n}.

    cache: the latent cache to train from, see open_cache; None trains from images.
    """
    data = config.data
    share = share or dict(host=jax.process_index(), hosts=jax.process_count())
    makers = make_conditions(config, source, fields).makers
    held_out = sources.holdout(source, data.holdout, train=False)
    if train := cache:
        chain = [latents.Choose(data.flip), *makers]
        train_fields = tuple("moments" if field == "image" else field for field in fields)
    else:
        train, train_fields = sources.holdout(source, data.holdout, train=True), fields
        chain = transforms.standard(data.size, data.crop, data.flip, data.interpolation, makers)
    return loop.Data(
        train=lambda step: pipeline.train_batches(
            train,
            chain,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=step,
            workers=data.workers,
            threads=data.threads,
            fields=train_fields,
            **share,
        ),
        held_out=lambda: held_out_batches(config, held_out, fields, **share),
        records=len(train),
        name=train.name,
        max_bad_fraction=data.max_bad_fraction,
    )


def open_cache(config: ConfigDict, source) -> latents.Cache | None:
    """The latent cache that a second stage trains from, found to be of its data; None: images."""
    path = config.get("latents", {}).get("cache", "")
    if not path:
        return None
    if is_identity(config.first_stage):
        raise errors.UsageError(
            f"config.latents.cache={path}: config.first_stage={config.first_stage} has no latents "
            "to keep; leave the cache empty."
        )
    data = config.data
    latents.variants(data.size, data.crop, data.flip, data.interpolation)
    cache = latents.open_cache(path)
    cache.check(latents.about(sources.holdout(source, data.holdout, train=True), data))
    return cache


def held_out_batches(config: ConfigDict, held_out, fields, **share):
    """The first `config.eval.records` held-out records, centre crops, in order."""
    data, makers = config.data, make_conditions(config, held_out, fields).makers
    return pipeline.eval_batches(
        held_out,
        transforms.standard(data.size, "center", False, data.interpolation, makers),
        batch_size=config.eval.batch_size,
        count=config.eval.records,
        fields=fields,
        **share,
    )


def make_conditions(config: ConfigDict, source=None, fields=None) -> conditions.Conditions:
    """How the condition fields of a config are made of records; see data/conditions.py.

    source: for the names of its classes and the words of its captions; None knows neither.
    fields: of the batch, if not all of them are wanted.
    """
    data, makers, wanted = config.data, [], []
    diffuse = config.stage == "diffuse"
    codec = open_codec(config.first_stage) if diffuse else Codec(None)
    image = (1, data.size, data.size, 3)
    latent = (1, data.size // codec.f, data.size // codec.f, codec.channels)
    for name, conditioner in make_conditioners(config).items() if diffuse else ():
        example = jax.eval_shape(lambda c=conditioner, i=image, z=latent: c.example(i, z))
        shapes = {field: array.shape[1:] for field, array in example.items()}
        for field, picture in conditioner.latent_of.items():
            del shapes[field]
            shapes[picture] = image[1:]
        if fields is not None and not set(shapes) & set(fields):
            continue
        group = config.conditioners[name]
        makers += conditions.makers(conditions.Given(shapes, conditioner, group, data, source))
        wanted += shapes
    framing = transforms.standard(data.size, "center", False, data.interpolation)[:-1]
    return conditions.Conditions(tuple(makers), tuple(dict.fromkeys(wanted)), tuple(framing))


def make_autoencoder(config: ConfigDict):
    """The first stage's network; `config.model.name` may name another than Autoencoder."""
    kwargs = dict(config.model)
    model = AUTOENCODERS.get(kwargs.pop("name", "autoencoder"))
    return model(**kwargs, dtype=jnp.dtype(config.dtype))


def make_autoencode(config: ConfigDict, weights=None) -> autoencode.Autoencode:
    """The first stage of a config. weights: LPIPS's; by default those of the files it names."""
    dtype = jnp.dtype(config.dtype)
    loss = autoencode.Loss(**config.loss)
    if loss.perceptual_weight and weights is None:
        weights = READERS.get("lpips")(**config.lpips)
    net = lpips.network(weights) if weights else "vgg"
    perceive = lambda params, x, y: lpips.LPIPS(net, dtype).apply({"params": params}, x, y)
    return autoencode.Autoencode(
        model=make_autoencoder(config),
        loss=loss,
        discriminator=PatchDiscriminator(**config.discriminator, dtype=dtype),
        size=config.data.size,
        perceive=perceive if weights is not None else None,
        lpips=weights,
        scores={"psnr_db": scores.psnr, "ssim": scores.ssim},
    )


def open_codec(first_stage: str) -> Codec:
    """The first stage of that run as a codec, without its weights.

    The recipe of a first stage, configs/NAME.py, stands for a run that is still to be trained: it
    has everything but weights, which is enough to build a second stage abstractly. The identity may
    say its channels, `identity:4`; otherwise it has an image's three.
    """
    if is_identity(first_stage):
        return Codec(None, int(str(first_stage).partition(":")[2] or 3))
    if not first_stage:
        raise errors.UsageError(
            "config.first_stage is empty: give the workdir of a trained first stage "
            f"(--config.first_stage=RUN), or {IDENTITY!r} for pixel diffusion."
        )
    recipe = is_recipe(first_stage)
    config = config_lib.load(first_stage) if recipe else read_config(first_stage)
    if config.stage != "autoencode":
        raise errors.UsageError(
            f"config.first_stage={first_stage} is of stage {config.stage!r}, not a first stage."
        )
    return Codec(make_autoencoder(config))


def is_identity(first_stage: str) -> bool:
    name, _, channels = str(first_stage).partition(":")
    return name == IDENTITY and (channels or "3").isdecimal()


def is_recipe(first_stage: str) -> bool:
    return str(first_stage).partition(":")[0].endswith(".py")


def codec_params(first_stage: str, ema: bool = True):
    """The weights that go with `open_codec`, and the training step they come from."""
    if is_identity(first_stage):
        return {}, 0
    params, step = checkpoint.read_params(first_stage, ("autoencoder",), ema=ema)
    return params["autoencoder"]["model"], step


def make_denoiser(config: ConfigDict, codec: Codec) -> Denoiser:
    dtype = jnp.dtype(config.dtype)
    model = {
        k: (v or None) if k in ("heads", "head_channels") else v for k, v in config.model.items()
    }
    return Denoiser(
        unet=UNet(out_channels=codec.channels, **model, dtype=dtype),
        conditioners=tuple(make_conditioners(config).values()),
    )


def make_conditioners(config: ConfigDict) -> dict:
    """{name: conditioner}. The other keys of one's group are arguments of its fields' makers."""
    made, dtype = {}, jnp.dtype(config.dtype)
    for name, kwargs in sorted(config.conditioners.items()):
        conditioner = conditioners.CONDITIONERS.get(kwargs["name"])
        own = inspect.signature(conditioner).parameters.keys() - {"name", "parent", "dtype"}
        fields = [conditioner.latent_of.get(f, f) for f in conditioner.fields]
        known = {"name"} | own | conditions.options(fields)
        if unknown := sorted(set(kwargs) - known):
            raise errors.UsageError(
                f"config.conditioners.{name} has no key {unknown[0]!r}"
                f"{errors.nearest(unknown[0], known)} (known: {', '.join(sorted(known))})."
            )
        given = {k: v for k, v in kwargs.items() if k in own}
        made[name] = conditioner(**given, dtype=dtype)
    return made


def make_diffuse(config: ConfigDict, codec: Codec | None = None) -> diffuse.Diffuse:
    """codec: in the place of the first stage that the config names, which may be untrained yet."""
    codec = codec or open_codec(config.first_stage)
    return diffuse.Diffuse(
        denoiser=make_denoiser(config, codec),
        process=make_process(**config.process),
        codec=codec,
        size=config.data.size,
        loss=diffuse.Loss(**config.loss),
        sampling=Sampling(**config.sample),
    )
