"""Learning-rate schedules, the optax chain of a player, and its exponential moving average."""

import jax
import jax.numpy as jnp
import optax

from ldm_jax.base import errors, registry

SCHEDULES = registry.Registry("learning-rate schedule")
OPTIMIZERS = registry.Registry("optimizer")


@SCHEDULES.register("constant")
def constant(lr, steps, floor):
    return optax.constant_schedule(lr)


@SCHEDULES.register("cosine")
def cosine(lr, steps, floor):
    return optax.cosine_decay_schedule(lr, max(steps, 1), alpha=floor)


@SCHEDULES.register("linear")
def linear(lr, steps, floor):
    return optax.linear_schedule(lr, floor * lr, max(steps, 1))


@OPTIMIZERS.register("adam")
def adam(schedule, b1, b2, weight_decay, mu_dtype):
    if weight_decay:
        raise errors.UsageError(
            f"optimizer 'adam' has no weight decay, given {weight_decay}; use 'adamw'."
        )
    return optax.adam(schedule, b1, b2, mu_dtype=mu_dtype)


@OPTIMIZERS.register("adamw")
def adamw(schedule, b1, b2, weight_decay, mu_dtype):
    # Decay acts on kernels and tables only; norms, biases and scalars keep their scale.
    mask = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    decay = dict(weight_decay=weight_decay, mask=mask)
    return optax.adamw(schedule, b1, b2, mu_dtype=mu_dtype, **decay)


def make_schedule(
    lr: float,
    *,
    schedule: str,
    warmup: int,
    total: int,
    start: float = 0.0,
    floor: float = 0.0,
    length: int = 0,
) -> optax.Schedule:
    """Linear warm-up over `warmup` steps, then the named schedule up to step `length` or `total`.

    start: share of lr at step 0, from where lr is reached at step `warmup`, as in the official
      schedules; 0 starts at lr / warmup and reaches lr a step earlier, so that none is wasted.
    floor: share of lr where the decay ends.
    """
    main = SCHEDULES.get(schedule)(lr, (length or total) - warmup, floor)
    if not warmup:
        return main
    ramp = (
        optax.linear_schedule(start * lr, lr, warmup)
        if start
        else optax.linear_schedule(lr / warmup, lr, warmup - 1)
    )
    return optax.join_schedules([ramp, main], [warmup])


def make_tx(
    *,
    total: int,
    lr: float,
    name: str = "adamw",
    schedule: str = "constant",
    warmup: int = 0,
    start: float = 0.0,
    floor: float = 0.0,
    length: int = 0,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.0,
    clip: float = 0.0,
    mu_dtype: str = "",
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """One player's optax chain, and its learning rate as a function of the step.

    Args:
      total: training steps, the length of the decay.
      lr: peak learning rate per step (never multiplied by batch or device count).
      start, floor, length: see make_schedule.
      clip: largest global gradient norm; 0 does not clip.
      mu_dtype: "bfloat16" keeps Adam's first moment in it; "" or "float32" does not. The second
        moment stays float32: b2 = 0.999 moves it by less than bfloat16 resolves.
    """
    if warmup > total:
        raise errors.UsageError(f"warmup={warmup} is longer than steps.total={total}.")
    if length and warmup > length:
        raise errors.UsageError(f"warmup={warmup} is longer than length={length} of the decay.")
    if mu_dtype not in ("", "float32", "bfloat16"):
        raise errors.UsageError(f"mu_dtype={mu_dtype!r}: use 'bfloat16' or 'float32'.")
    decay = dict(schedule=schedule, start=start, floor=floor, length=length)
    lr_fn = make_schedule(lr, warmup=warmup, total=total, **decay)
    tx = OPTIMIZERS.get(name)(lr_fn, b1, b2, weight_decay, mu_dtype or None)
    return (optax.chain(optax.clip_by_global_norm(clip), tx) if clip else tx), lr_fn


def update_ema(ema, params, step, decay: float, warmup: bool = True):
    """Exponential moving average; warmed up, its decay is min(decay, (1+n)/(10+n)) at n = step + 1.

    The official LitEma and its `use_num_updates`; counted in optimizer steps, not in micro-batches.
    """
    n = step.astype(jnp.float32) + 1
    keep = jnp.minimum(decay, (1 + n) / (10 + n)) if warmup else decay
    return jax.tree.map(lambda e, p: e - (1 - keep) * (e - p), ema, params)
