"""Guidance: wrappers that turn one `denoise(x, t) -> x_0` into another, unseen by samplers."""

import jax
import jax.numpy as jnp

from ldm_jax.base.errors import UsageError


def guide(denoise, cond, null, scale=1.0):
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598), s = 1 being no guidance.

    `denoise(x, t, cond) -> x_0` with x: [b, ...], t: [b]; cond and null are pytrees of [b, ...]
    arrays with the same structure (None leaves where a kind of condition is absent).
    Returns `denoise(x, t) -> x_0`. One network call on [null; cond] serves both; with scale 1
    the null is never computed, and may be None.

    Defined on eps, e = e_null + s (e_cond - e_null); at a fixed x_t, x_0 is affine in eps (and in
    v), so the same formula holds on x_0.
    """
    if scale == 1.0:
        return lambda x, t: denoise(x, t, cond)
    _check_same_structure(cond, null)
    both = jax.tree.map(lambda u, c: jnp.concatenate([u, c]), null, cond)

    def guided(x, t):
        x_0 = denoise(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)
        x_0_null, x_0_cond = jnp.split(x_0, 2)
        return classifier_free(x_0_cond, x_0_null, scale)

    return guided


def classifier_free(cond, null, scale):
    """null + scale (cond - null), for predictions of any one kind, [b, ...]."""
    return null + scale * (cond - null)


def clip_x0(denoise, low=-1.0, high=1.0):
    """Clamps every predicted x_0 (the official `clip_denoised`): for pixels, not for latents."""
    return lambda x, t: jnp.clip(denoise(x, t), low, high)


def _check_same_structure(cond, null):
    given, missing = jax.tree.structure(cond), jax.tree.structure(null)
    if given != missing:
        raise UsageError(
            "Guidance with a scale other than 1 needs a null condition of the same structure as "
            f"the condition; got {missing} for {given}."
        )
