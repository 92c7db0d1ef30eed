"""The programs that a run of a config compiles, with abstract arguments: no data, no weights.

`plan` and `doctor` compile them, `bench` runs and times them, and a sweep counts their operations.
The devices need not be here.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.base import raster, shard, tree
from ldm_jax.cost import flops
from ldm_jax.diffusion import samplers
from ldm_jax.runs import kinds
from ldm_jax.stages.codec import Codec


class Program(NamedTuple):
    """A jitted function and its arguments, {name: tree of ShapeDtypeStructs}, in order."""

    function: Any
    arguments: dict

    def lower(self):
        return self.function.lower(*self.arguments.values())

    def flops(self) -> float:
        """Operations of a call, see flops.py."""
        return flops.count(self.function, *self.arguments.values())


def training(config, mesh, first_stage: Codec | None = None, cached: bool = False) -> Program:
    """One training step: (state, frozen, batch, key) -> (state, metrics).

    first_stage: of a second stage, instead of the one that the config names.
    cached: whether batches come from a latent cache.
    """
    kind, given = kinds.of(config), {"codec": first_stage} if first_stage else {}
    stage = kind.stage(config, kind.frozen_shapes(config, **given), **given)
    programs = kinds.programs(config, stage, mesh)
    whole, batch = shard.replicated(mesh), kind.batch(config, cached, **given)
    rows = {name: shard.batch_sharding(mesh, field.shape) for name, field in batch.items()}
    arguments = {
        "state": programs.state,
        "frozen": shard.abstract(stage.frozen, whole),
        "batch": shard.abstract(batch, rows),
        "key": shard.abstract(_keys(), whole),
    }
    return Program(programs.step, arguments)


def training_flops(config, codec=None, cached: bool = True) -> float:
    """Floating-point operations of one training step of a config, with all losses and optimizers.

    XLA counts them before it optimises the program, so the number does not depend on the machine.
    A multiplication and an addition count as two, the padding of convolutions does not count. The
    body of a loop, such as the blocks of a scanned network, counts as often as it runs.
    codec: the first stage of a second stage, which need not be trained; cached: whether batches
    come from a latent cache.
    """
    config = config.copy_and_resolve_references()
    config.accumulate = 1  # of what runs inside a loop, only products are counted once a turn
    if "attention_kernel" in config.model:
        config.model.attention_kernel = "xla"  # what others compute twice, and hide, is no work
    cpu = jax.devices("cpu")[:1]
    with jax.default_device(cpu[0]):
        program = training(config, shard.make_mesh(devices=cpu), codec, cached)
        loops = flops.repeated(program.function, *program.arguments.values())
        return float(program.lower().cost_analysis()["flops"]) + loops


def sampling(config, mesh, batch_size: int) -> Program:
    """Drawing a batch with the config's sampler: (params, frozen, keys, fields) -> uint8 images."""
    kind = kinds.of(config)
    model, frozen = kind.model(config), kind.frozen_shapes(config)
    how, size = model.sampling, config.data.size

    def draw(params, frozen, keys, fields):
        z = model.sample(params, frozen, keys, fields, sampling=how, height=size, width=size)
        return raster.to_uint8(model.render(frozen, z, how))

    whole, rows = shard.replicated(mesh), shard.batch_sharding(mesh)
    arguments = {
        "params": shard.abstract(jax.eval_shape(model.init, _keys()), whole),
        "frozen": shard.abstract(frozen, whole),
        "keys": shard.abstract(_keys(batch_size), rows),
        "fields": shard.abstract(kind.fields(model, batch_size), rows),
    }
    return Program(jax.jit(draw, out_shardings=rows), arguments)


def codec(config, mesh, batch_size: int) -> dict[str, Program]:
    """{"encode": (params, images) -> moments, "decode": (params, latents) -> images}.

    The config is one of a first stage, or of a second stage that has one; {} for pixel diffusion.
    """
    own = kinds.of(config).codec(config)
    if own.model is None:
        return {}
    side, rows = config.data.size, shard.batch_sharding(mesh)
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    params = jax.eval_shape(own.model.init, _keys(), image)["params"]
    params = shard.abstract(params, shard.replicated(mesh))

    def program(function, f, channels):
        shape = batch_size, side // f, side // f, channels
        batch = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rows)
        return Program(jax.jit(function), {"params": params, "batch": batch})

    encode = program(own.moments, 1, 3)
    return {"encode": encode, "decode": program(own.decode, own.f, own.channels)}


def fill(program: Program) -> tuple:
    """Random arguments for a program, in order, on the devices that it wants them on.

    Weights and data are noise, optimizers' second moments its absolute values, integers 0.
    """
    noise = 0.02 * np.random.default_rng(0).normal(size=2**20).astype(np.float32)

    def make(path, leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.jit(lambda: _key_array(leaf.shape), out_shardings=leaf.sharding)()
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)
        values = np.resize(noise, leaf.shape).astype(leaf.dtype)
        values = np.abs(values) if "/nu/" in tree.path_name(path) else values
        return jax.device_put(values, leaf.sharding)

    return tuple(jax.tree_util.tree_map_with_path(make, list(program.arguments.values())))


def _key_array(shape):
    return samplers.image_keys(0, jnp.arange(*shape)) if shape else jax.random.key(0)


def _keys(*count):
    """The shape of a key, or of `count` of them."""
    return jax.eval_shape(lambda: _key_array(count))
