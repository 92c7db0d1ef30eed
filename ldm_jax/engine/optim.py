"""How a player learns: its learning-rate schedule, its optimizer, the average of its weights.

Each is a registered value that the player's group of the config names. An optimizer's options are
keys of that group: another optimizer is one more function here or in a plugin.
"""

import functools
import inspect
import itertools
import types
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldm_jax.base import errors, registry, tree
from ldm_jax.engine import power

# (peak, steps, **its own options) -> optax schedule; steps: of training, after the warm-up
SCHEDULES = registry.Registry("learning-rate schedule")
OPTIMIZERS = registry.Registry("optimizer")  # (rate, **its own options) -> optax transformation
# (ema, warmup) -> update(average, params, step), the average after optimizer step `step`, from 0
AVERAGES = registry.Registry("average of the weights")
POWER = "power"  # the average that is kept at several lengths, and combined to others afterwards


@SCHEDULES.register("constant")
def constant(lr, steps):
    """Always lr."""
    return optax.constant_schedule(lr)


@SCHEDULES.register("cosine")
def cosine(lr, steps, *, floor=0.0, length=0):
    """Down to floor * lr along half a cosine."""
    return optax.cosine_decay_schedule(lr, max(length or steps, 1), alpha=floor)


@SCHEDULES.register("linear")
def linear(lr, steps, *, floor=0.0, length=0):
    """Down to floor * lr along a line."""
    return optax.linear_schedule(lr, floor * lr, max(length or steps, 1))


@SCHEDULES.register("inverse_sqrt")
def inverse_sqrt(lr, steps, *, floor=0.0, length=0):
    """lr up to step `length`, then lr / sqrt(step / length) (Karras et al. 2024, arXiv 2312.02696).

    It does not need to know when training ends. Steps count from the end of the warm-up.
    """
    if not length:
        raise errors.UsageError("schedule='inverse_sqrt' needs length, the step that it begins at.")
    return lambda step: lr * jnp.maximum(floor, jnp.sqrt(length / jnp.maximum(step, length)))


@OPTIMIZERS.register("adam")
def adam(rate, b1=0.9, b2=0.999, mu_dtype=""):
    """Adam (Kingma & Ba 2015).

    mu_dtype: "bfloat16" keeps the first moment in it; "" and "float32" do not.

    The second moment stays float32: b2 = 0.999 moves it by less than bfloat16 resolves.
    """
    return optax.adam(rate, b1, b2, mu_dtype=_moment(mu_dtype))


@OPTIMIZERS.register("adamw")
def adamw(rate, b1=0.9, b2=0.999, weight_decay=0.0, mu_dtype=""):
    """Adam with decoupled weight decay; mu_dtype: see `adam`."""
    # Decay acts on kernels and tables only; norms, biases and scalars keep their scale.
    kernel = lambda path, leaf: tree.rank(path, leaf) > 1
    mask = lambda params: jax.tree_util.tree_map_with_path(kernel, params)
    decay = dict(weight_decay=weight_decay, mask=mask)
    return optax.adamw(rate, b1, b2, mu_dtype=_moment(mu_dtype), **decay)


@OPTIMIZERS.register("muon")
def muon(
    rate,
    b1=0.9,
    b2=0.999,
    beta=0.95,
    ns_steps=5,
    adam_share=0.1,
    weight_decay=0.0,
    mu_dtype="",
):
    """Muon (Jordan et al. 2024) for kernels, Adam with Nesterov's momentum for all else.

    A kernel's momentum is orthogonalised as the matrix from all inputs of a neuron, of a
    convolution over its window too, to its outputs. beta: decay of that momentum. ns_steps:
    Newton-Schulz iterations of the orthogonalisation, which cost a small network as much as its
    gradients. adam_share: Adam's learning rate, as a share of Muon's. weight_decay: of kernels
    alone. mu_dtype: see `adam`.
    """
    return optax.contrib.muon(
        rate,
        beta=beta,
        ns_steps=ns_steps,
        weight_decay=weight_decay,
        mu_dtype=_moment(mu_dtype),
        adam_b1=b1,
        adam_b2=b2,
        adam_learning_rate=lambda step: adam_share * rate(step),
        muon_weight_dimension_numbers=_matrices,
    )


def _matrices(params):
    """How each kernel is a matrix; None for what is none."""
    numbers = optax.contrib.MuonDimensionNumbers

    def matrix(path, leaf):
        first, last = leaf.ndim - tree.rank(path, leaf), leaf.ndim - 1  # layers come before
        if path[-1].key != "kernel" or last < first + 1:
            return None
        return numbers(reduction_axis=tuple(range(first, last)), output_axis=last)

    return jax.tree_util.tree_map_with_path(matrix, params)


def _moment(dtype: str):
    if dtype not in ("", "float32", "bfloat16"):
        raise errors.UsageError(f"mu_dtype={dtype!r}: use 'bfloat16' or 'float32'.")
    return dtype or None


@AVERAGES.register("ema")
def ema(decay: float, warmup: bool = True):
    """Exponential moving average; warmed up, its decay is min(decay, (1+n)/(10+n)) at n = step + 1.

    The official LitEma and its `use_num_updates`; counted in optimizer steps, not in micro-batches.
    """

    def update(average, params, step):
        n = step.astype(jnp.float32) + 1
        keep = jnp.minimum(decay, (1 + n) / (10 + n)) if warmup else decay
        return jax.tree.map(lambda e, p: e - (1 - keep) * (e - p), average, params)

    return update


@AVERAGES.register(POWER)
def power_average(length: float, warmup: bool = True):
    """The average along a power function, of that length; see engine/power.py.

    It forgets all weights before step 1, inherited ones too: combining averages to one of another
    length counts on it.
    """
    exponent = power.exponent(length)

    def update(average, params, step):
        share = power.share(exponent, step.astype(jnp.float32) + 1)
        return jax.tree.map(lambda e, p: e - share * (e - p), average, params)

    return update


class Optimizer(NamedTuple):
    """How one player learns.

    tx: optax transformation of its gradients.
    rate: step -> learning rate.
    average: (average, params, step) -> the next average of its weights; None keeps no average.
    lengths: {length as text: as `average`} of averages along power functions, {} of other kinds;
      the first is `average`.
    """

    tx: optax.GradientTransformation
    rate: optax.Schedule
    average: Callable | None
    lengths: dict[str, Callable] = types.MappingProxyType({})


def make(settings: dict, total: int, ema_warmup: bool = True) -> Optimizer:
    """The optimizer of a player.

    Args:
      settings: arguments of `make_schedule`; "name", the optimizer's, and its options, beside which
        those of other optimizers may stand at their defaults; "clip", the bound of the gradients'
        global norm, 0 for none; "average", a name of AVERAGES, with its own options, and "ema", its
        decay, 0 for no average; the lengths of "power", in ascending order.
      total: training steps.
      ema_warmup: whether averages forget the weights that training starts from; those that start
        as noise should be forgotten, inherited ones are worth keeping.
    """
    settings = dict(settings)
    name, clip = settings.pop("name", "adamw"), settings.pop("clip", 0.0)
    average, numbers = settings.pop("average", "ema"), settings.pop("ema", 0.0)
    of_rate = inspect.signature(make_schedule).parameters
    schedule = {key: settings.pop(key) for key in list(settings) if key in of_rate}
    averaging = {key: settings.pop(key) for key in list(settings) if AVERAGES.takers(key)}
    averages = _averages(average, numbers, ema_warmup, averaging)
    rate = make_schedule(**schedule, total=total)
    tx = OPTIMIZERS.call(name, rate, **settings)
    tx = optax.chain(optax.clip_by_global_norm(clip), tx) if clip else tx
    return Optimizer(tx, rate, *averages)


def lengths(settings: dict) -> tuple[float, ...]:
    """The lengths of the averages of a player, () where they are of another kind than "power"."""
    return _numbers(settings["ema"]) if settings.get("average") == POWER else ()


def _averages(name: str, ema, warmup: bool, options: dict):
    """`average` and `lengths` of an Optimizer."""
    make = functools.partial(AVERAGES.get(name), **AVERAGES.taken(name, **options))
    numbers = _numbers(ema)
    if name != POWER:
        if len(numbers) > 1:
            raise errors.UsageError(
                f"ema={ema} with average={name!r}: it takes one number, its decay; several lengths "
                f"are for average={POWER!r}."
            )
        return (make(numbers[0], warmup), {}) if any(numbers) else (None, {})
    if not any(numbers):
        raise errors.UsageError(f"average={name!r} needs its lengths: set ema=0.05,0.10.")
    if not all(a < b for a, b in itertools.pairwise(numbers)):
        raise errors.UsageError(
            f"ema={ema}: give each length once and the shortest first, which training evaluates: "
            f"ema={','.join(f'{n:g}' for n in sorted({*numbers}))}."
        )
    updates = {f"{number:g}": make(number, warmup) for number in numbers}
    return updates[f"{numbers[0]:g}"], updates


def _numbers(ema) -> tuple[float, ...]:
    """The number or numbers of a config's `ema`."""
    numbers = tuple(ema) if isinstance(ema, (tuple, list)) else (ema,)
    if not all(isinstance(number, (int, float)) for number in numbers):
        raise errors.UsageError(f"ema={ema!r}: give a number, or several with commas between them.")
    return numbers


def make_schedule(
    lr: float,
    *,
    total: int,
    schedule: str = "constant",
    warmup: int = 0,
    start: float = 0.0,
    floor: float = 0.0,
    length: int = 0,
) -> optax.Schedule:
    """Linear warm-up over `warmup` steps, then the named schedule.

    lr: peak learning rate per step (never multiplied by batch or device count).
    start: share of lr at step 0, from where lr is reached at step `warmup`, as in the official
      schedules; 0 starts at lr / warmup and reaches lr a step earlier, so that none is wasted.
    length: step at which a decay ends, or, of inverse_sqrt, begins; 0: steps.total.
    floor: share of lr below which no decay leads.
    """
    if warmup > total:
        raise errors.UsageError(f"warmup={warmup} is longer than steps.total={total}.")
    if length and warmup > length:
        raise errors.UsageError(f"warmup={warmup} is longer than length={length} of the decay.")
    after = {"floor": floor, "length": max(length - warmup, 1) if length else 0}
    main = SCHEDULES.call(schedule, lr, total - warmup, **after)
    if not warmup:
        return main
    ramp = (
        optax.linear_schedule(start * lr, lr, warmup)
        if start
        else optax.linear_schedule(lr / warmup, lr, warmup - 1)
    )
    return optax.join_schedules([ramp, main], [warmup])
