"""Guidance: wrappers that turn one `denoise(x, t) -> x_0` into another, unseen by samplers.

What a rule of `GUIDANCES` makes of two predictions is a prediction of x_0. At a fixed x_t, x_0 is
affine in eps (and in v), so the formulas that papers write for eps hold on x_0 as they stand.
"""

import jax
import jax.numpy as jnp

from ldm_jax.base.errors import UsageError
from ldm_jax.base.registry import Registry

# (strong, weak, scale: a number, or one for each row, **its own options) -> x_0
GUIDANCES = Registry("guidance rule")


@GUIDANCES.register("linear")
def extrapolate(strong, weak, scale, *, rescale=0.0):
    """weak + scale (strong - weak), for predictions of any one kind, [b, ...].

    With `rescale` (Lin et al. 2023, arXiv 2305.08891, eq. 14-16, there on the network's output) it
    goes that share of the way back to the standard deviation that each `strong` has: large scales
    overexpose.
    """
    guided = weak + scale * (strong - weak)
    if not rescale:
        return guided
    axes = tuple(range(1, strong.ndim))
    ratio = strong.std(axes, keepdims=True) / guided.std(axes, keepdims=True)
    return guided * (1.0 - rescale + rescale * ratio)


def guide(denoise, cond, null, combine):
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598).

    `denoise(x, t, cond) -> x_0` with x: [b, ...], t: [b]; cond and null are pytrees of [b, ...]
    arrays with the same structure (None leaves where a kind of condition is absent).
    Returns `denoise(x, t) -> x_0`, by `combine(strong, weak, t)` of the predictions under cond and
    under null. One network call on [null; cond] serves both.
    """
    given, missing = jax.tree.structure(cond), jax.tree.structure(null)
    if given != missing:
        raise UsageError(
            "Guidance with a scale other than 1 needs a null condition of the same structure as "
            f"the condition; got {missing} for {given}."
        )
    both = jax.tree.map(lambda u, c: jnp.concatenate([u, c]), null, cond)

    def guided(x, t):
        x_0 = denoise(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)
        x_0_null, x_0_cond = jnp.split(x_0, 2)
        return combine(x_0_cond, x_0_null, t)

    return guided


def autoguide(denoise, weaker, combine):
    """Guidance away from a weaker model of the same thing (Karras et al. 2024, arXiv 2406.02507).

    Both are `denoise(x, t) -> x_0` under the same condition: one network smaller or less trained
    than the other. Two calls for each prediction, put together by `combine(strong, weak, t)`.
    """
    return lambda x, t: combine(denoise(x, t), weaker(x, t), t)


def within(guide, plain, combine, noise_share, interval=()):
    """Guidance at some noise levels only (Kynkaanniemi et al. 2024, arXiv 2404.07724).

    guide: (combine) -> a guided `denoise(x, t)`, as `guide` and `autoguide` make them.
    combine: (strong, weak) -> x_0, a rule of `GUIDANCES` with its scale and options.
    plain: the `denoise(x, t)` without guidance; where no row of t is inside, it alone is computed.
    noise_share: t [b] -> sigma / sqrt(alpha^2 + sigma^2), 0 to 1 (`Process.noise_share`).
    interval: (low, high) of that; the levels s of x_0 + s eps that the paper gives are
      s / sqrt(1 + s^2) here. () is everywhere.

    Every row goes by its own t: one outside of the interval keeps its strong prediction.
    """
    if not interval:
        return guide(lambda strong, weak, t: combine(strong, weak))
    low, high = interval

    def inside(t):
        level = noise_share(t)
        return (low <= level) & (level <= high)

    def combine_inside(strong, weak, t):
        rows = inside(t).reshape(-1, *[1] * (strong.ndim - 1))
        return jnp.where(rows, combine(strong, weak), strong)

    guided = guide(combine_inside)
    return lambda x, t: jax.lax.cond(jnp.any(inside(t)), guided, plain, x, t)


def clip_x0(denoise, bound=1.0):
    """Clamps every predicted x_0 (the official `clip_denoised`): for pixels, not for latents."""
    return lambda x, t: jnp.clip(denoise(x, t), -bound, bound)


def check(interval):
    """Refuses an interval that `within` has no meaning for."""
    if interval and not (len(interval) == 2 and 0.0 <= interval[0] <= interval[1] <= 1.0):
        raise UsageError(
            f"interval={interval} must be () or (low, high) with 0 <= low <= high <= 1."
        )
