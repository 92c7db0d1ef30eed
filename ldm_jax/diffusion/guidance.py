"""Guidance: wrappers that turn one `denoise(x, t) -> x_0` into another, unseen by samplers.

All of them extrapolate x_0. At a fixed x_t, x_0 is affine in eps (and in v), so the formulas that
papers write for eps hold on x_0 as they stand.
"""

import jax
import jax.numpy as jnp

from ldm_jax.base.errors import UsageError


def guide(denoise, cond, null, scale=1.0, rescale=0.0):
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598), s = 1 being no guidance.

    `denoise(x, t, cond) -> x_0` with x: [b, ...], t: [b]; cond and null are pytrees of [b, ...]
    arrays with the same structure (None leaves where a kind of condition is absent).
    Returns `denoise(x, t) -> x_0`. One network call on [null; cond] serves both; with scale 1
    the null is never computed, and may be None.
    """
    if scale == 1.0:
        return lambda x, t: denoise(x, t, cond)
    _check_same_structure(cond, null)
    both = jax.tree.map(lambda u, c: jnp.concatenate([u, c]), null, cond)

    def guided(x, t):
        x_0 = denoise(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)
        x_0_null, x_0_cond = jnp.split(x_0, 2)
        return extrapolate(x_0_cond, x_0_null, scale, rescale)

    return guided


def autoguide(denoise, weaker, scale, rescale=0.0):
    """Guidance away from a weaker model of the same thing (Karras et al. 2024, arXiv 2406.02507).

    Both are `denoise(x, t) -> x_0` under the same condition: one network smaller or less trained
    than the other. Two calls for each prediction.
    """
    return lambda x, t: extrapolate(denoise(x, t), weaker(x, t), scale, rescale)


def within(guided, plain, sigma, interval=()):
    """Guidance at some noise levels only (Kynkaanniemi et al. 2024, arXiv 2404.07724).

    interval: (low, high) of sigma(t), the standard deviation of the noise in x_t, 0 to 1; the
    paper's levels s of x_0 + s eps are s / sqrt(1 + s^2) here. () is everywhere. Elsewhere `plain`
    alone is computed. All rows must be at one timestep, as they are in sampling.
    """
    if not interval:
        return guided
    low, high = interval

    def denoise(x, t):
        level = sigma(t[0])
        return jax.lax.cond((low <= level) & (level <= high), guided, plain, x, t)

    return denoise


def extrapolate(strong, weak, scale, rescale=0.0):
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


def clip_x0(denoise, bound=1.0):
    """Clamps every predicted x_0 (the official `clip_denoised`): for pixels, not for latents."""
    return lambda x, t: jnp.clip(denoise(x, t), -bound, bound)


def check(rescale, interval):
    """A UsageError where `extrapolate` or `within` could not mean these settings."""
    if not 0.0 <= rescale <= 1.0:
        raise UsageError(f"rescale={rescale} must lie in 0..1.")
    if interval and not (len(interval) == 2 and 0.0 <= interval[0] <= interval[1] <= 1.0):
        raise UsageError(
            f"interval={interval} must be () or (low, high) with 0 <= low <= high <= 1."
        )


def _check_same_structure(cond, null):
    given, missing = jax.tree.structure(cond), jax.tree.structure(null)
    if given != missing:
        raise UsageError(
            "Guidance with a scale other than 1 needs a null condition of the same structure as "
            f"the condition; got {missing} for {given}."
        )
