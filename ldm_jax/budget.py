"""What a training step costs, by XLA's own count, and how many of them a budget pays for."""

import jax
import jax.numpy as jnp

from ldm_jax import build
from ldm_jax.base import shard
from ldm_jax.engine import optim
from ldm_jax.engine import step as step_lib


def training_flops(config, codec=None) -> float:
    """Floating-point operations of one training step of a config, all players and optimizers.

    Counted on the program as it is before optimisation, so that they do not depend on the machine:
    a multiplication and an addition are two, and a convolution's padding costs nothing. A second
    stage is counted on cached latents. codec: its first stage, which need not be trained.
    """
    b, size = config.batch_size, config.data.size
    with jax.default_device(jax.devices("cpu")[0]):
        if config.stage == "autoencode":
            stage = build.make_autoencode(config).stage()
            batch = {"image": _abstract(b, size, size, 3)}
        else:
            model = build.make_diffuse(config, codec)
            stage = model.stage({"first_stage": {}, "scale": _abstract()})
            height, width, channels = model.latent_shape(size, size)
            kl = codec.model is not None and codec.model.bottleneck == "kl"
            moments = _abstract(b, height, width, channels * (2 if kl else 1))
            batch = {"moments": moments} | jax.eval_shape(lambda: model.example(b, size, size))
        lowered = jax.jit(_step(config, stage)).lower(*_state(config, stage), batch, _key())
        return float(lowered.cost_analysis()["flops"])


def steps(budget, flops_per_step: float, seconds_per_step: float | None = None) -> int:
    """Steps that a budget {"kind", "amount", "max_steps"} pays for, at least one.

    seconds_per_step: as measured, for budgets of seconds.
    """
    cost = {"flops": flops_per_step, "steps": 1, "seconds": seconds_per_step}[budget["kind"]]
    return int(min(budget["max_steps"], max(1, budget["amount"] / cost)))


def _transformations(config, stage):
    settings = {p.name: dict(config.optim[p.name]) for p in stage.players}
    ema = {name: kwargs.pop("ema") for name, kwargs in settings.items()}
    total = config.steps.total
    return {name: optim.make_tx(total=total, **kw)[0] for name, kw in settings.items()}, ema


def _step(config, stage):
    # Micro-batches run in a loop, whose body XLA counts once; whole batches cost the same.
    txs, ema = _transformations(config, stage)
    mesh = shard.make_mesh(devices=jax.devices("cpu")[:1])
    return step_lib.make_step(stage.players, txs, ema, mesh=mesh)


def _state(config, stage):
    init = step_lib.make_init(stage.players, *_transformations(config, stage))
    return jax.eval_shape(init, _key()), stage.frozen


def _key():
    return jax.eval_shape(lambda: jax.random.key(0))


def _abstract(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)
