"""What can be known to be wrong with a config before any device is touched."""

from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from ldm_jax.base import errors, shard
from ldm_jax.build import objects as build
from ldm_jax.data import latents, transforms
from ldm_jax.diffusion.loss_weights import WEIGHTS
from ldm_jax.diffusion.process import make_process
from ldm_jax.engine import loop, optim, step
from ldm_jax.models import parallel
from ldm_jax.models.conditioners import label_of, num_classes
from ldm_jax.nn import attention, blocks
from ldm_jax.stages import autoencode, diffuse
from ldm_jax.stages.sampling import Sampling


class Opened(NamedTuple):
    """What a check had to read, for who goes on with the config: it need not be read again.

    frozen: the conditioners' frozen weights. cache: the latent cache, or None for images.
    """

    frozen: dict
    cache: latents.Cache | None = None


def check(config: ConfigDict, source) -> Opened:
    """Raises UsageError for what can be known to be wrong before any device is touched."""
    opened = Opened({})
    size = config.data.size
    positive = {f"eval.{key}": config.eval[key] for key in ("records", "batch_size")}
    positive |= {key: config[key] for key in ("batch_size", "accumulate")}
    for key, value in positive.items():
        if value < 1:
            raise errors.UsageError(f"config.{key}={value} must be at least 1.")
    for key in ("max_bad_steps", "max_loss_spike", "max_rollbacks", "check_replicas"):
        if config.get(key, 0) < 0:
            raise errors.UsageError(f"config.{key}={config[key]} must be at least 0.")
    if config.batch_size % config.accumulate:
        raise errors.UsageError(
            f"config.batch_size={config.batch_size} must be a positive multiple of "
            f"config.accumulate={config.accumulate}."
        )
    if not 0 <= config.seed < 2**32:
        raise errors.UsageError(f"config.seed={config.seed}: give a number from 0 to {2**32 - 1}.")
    data = config.data
    transforms.standard(data.size, data.crop, data.flip, data.interpolation)
    loop.Intervals(**config.steps)
    for kwargs in config.optim.values():
        optim.make(kwargs, config.steps.total)
    _one_of("config.dtype", config.dtype, ("float32", "bfloat16"))
    _one_of("config.model.remat_saves", config.model.get("remat_saves", ""), blocks.REMAT_SAVES)
    if config.stage == "autoencode":
        divides(
            size,
            build.make_autoencoder(config).f,
            "the downsampling factor f of config.model",
        )
        _one_of("config.model.bottleneck", config.model.bottleneck, ("kl", "vq"))
        _one_of(
            "config.discriminator.norm", config.discriminator.norm, ("batch", "group", "actnorm")
        )
        autoencode.check(autoencode.Loss(**config.loss), all(config.lpips.values()))
    elif config.stage == "diffuse":
        _trained(config.first_stage)
        codec = build.open_codec(config.first_stage)
        process = make_process(**config.process)
        Sampling(**config.sample).grid(process)
        diffuse.DISTANCES.get(config.loss.distance)
        WEIGHTS.get(config.loss.weight)
        if bool(config.model.heads) == bool(config.model.head_channels):
            raise errors.UsageError(
                f"config.model.heads={config.model.heads} and config.model.head_channels="
                f"{config.model.head_channels}: set one of them, the other 0."
            )
        classes = num_classes(config.conditioners)
        if 0 < classes < len(source.classes or ()):
            raise errors.UsageError(
                f"config.conditioners.{label_of(config.conditioners, 'class')}.num_classes="
                f"{classes}, but the data has "
                f"{len(source.classes)} classes: take other data, or a model of so many."
            )
        levels = 2 ** (len(config.model.mult) - 1)
        divides(
            size, codec.f * levels, f"f={codec.f} times {levels} (the levels of config.model.mult)"
        )
        for name, conditioner in build.make_conditioners(config).items():
            if not 0 <= (conditioner.dropout or 0.0) <= 1:
                raise errors.UsageError(
                    f"config.conditioners.{name}.dropout={conditioner.dropout}: give a share from "
                    "0 to 1, or leave it out for config.loss.cond_dropout."
                )
        frozen = build.make_denoiser(config, codec).read_frozen()
        build.make_conditions(config, source)
        opened = Opened(frozen, build.open_cache(config, source))
    else:
        raise errors.UsageError(f"config.stage={config.stage!r}: use 'autoencode' or 'diffuse'.")
    if len(source) * (1 - config.data.holdout) < 1:
        raise errors.UsageError(
            f"config.data.holdout={config.data.holdout} leaves no training records."
        )
    return opened


def make_mesh(config: ConfigDict, devices=None):
    """The mesh of a config, once it is known that everything divides by its axes, and its kernels.

    devices: in the place of those that are there.
    """
    known = {"attention_kernel": attention.KERNELS, "norm_kernel": blocks.NORM_KERNELS}
    for key, kernels in known.items():
        _one_of(f"config.model.{key}", config.model.get(key, "xla"), kernels)
    mesh = shard.make_mesh(**config.mesh, devices=devices)
    shard.check_batch(config.batch_size, mesh, config.accumulate)
    shard.check_batch(config.eval.batch_size, mesh, key="config.eval.batch_size")
    if (parts := mesh.shape["spatial"]) > 1:
        lowest = 2 ** (len(config.model.mult) - 1)
        if config.stage == "diffuse":
            lowest *= build.open_codec(config.first_stage).f
        what = f"config.mesh.spatial={parts} times {lowest}, so that devices share every level"
        divides(config.data.size, parts * lowest, what)
    if mesh.shape["tensor"] > 1:
        _splits(config, mesh)
    if mesh.size > 1 and config.model.get("norm_kernel", "xla") != "xla":
        raise errors.UsageError(
            f"config.model.norm_kernel={config.model.norm_kernel} with {mesh.size} devices: XLA "
            "would gather every batch on all of them; use xla, or one device."
        )
    step.check_offload(config.get("offload", False), mesh)
    return mesh


def _splits(config: ConfigDict, mesh):
    """Raises UsageError where no layer is wide enough for the mesh axis `tensor`."""
    if config.stage == "autoencode":
        model, key = build.make_autoencoder(config), jax.eval_shape(lambda: jax.random.key(0))
        size = config.data.size
        image = jax.ShapeDtypeStruct((1, size, size, model.image_channels), "float32")
        shapes = jax.eval_shape(model.init, key, image)
    else:
        model = build.make_diffuse(config)
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    placed = jax.tree.leaves(shard.infer(shapes, mesh, parallel.RULES))
    if not any("tensor" in where.spec for where in placed):
        raise errors.UsageError(
            f"config.mesh.tensor={mesh.shape['tensor']} has nothing to split: no layer of at least "
            f"{shard.MIN_SHARD_SIZE} weights has so many even parts; set it to 1."
        )


def _one_of(key: str, value, known):
    if value not in known:
        raise errors.UsageError(f"{key}={value!r}: use {' or '.join(map(repr, known))}.")


def divides(size: int, factor: int, what: str):
    if size % factor:
        nearest = max(1, round(size / factor)) * factor
        raise errors.UsageError(
            f"config.data.size={size} must divide by {factor}, {what}; nearest: {nearest}."
        )


def _trained(first_stage: str):
    if build.is_recipe(first_stage):
        raise errors.UsageError(
            f"config.first_stage={first_stage} is a recipe: train it (python -m ldm_jax.train "
            f"--config={first_stage} --workdir=RUN), then give --config.first_stage=RUN."
        )
