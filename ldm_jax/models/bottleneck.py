"""The two ways to regularise a latent: a KL-penalised Gaussian, and a codebook.

Pure functions in float32. KL: Kingma & Welling 2014. VQ: van den Oord et al. 2017, in the form of
VQ-GAN (Esser et al. 2021).
"""

import jax
import jax.numpy as jnp


def split(moments):
    """Moments [b, h, w, 2c] -> mean, logvar, each [b, h, w, c]; logvar clamped to [-30, 20]."""
    mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(logvar, -30.0, 20.0)


def mode(moments):
    """The posterior's most likely latent. [b, h, w, 2c] -> [b, h, w, c]."""
    return split(moments)[0]


def sample(key, moments):
    """A draw from the posterior. [b, h, w, 2c] -> [b, h, w, c]."""
    mean, logvar = split(moments)
    return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)


def kl(moments):
    """KL(posterior || N(0, 1)), summed over space and channels. [b, h, w, 2c] -> [b]."""
    mean, logvar = split(moments)
    return 0.5 * jnp.sum(mean**2 + jnp.exp(logvar) - 1.0 - logvar, axis=(1, 2, 3))


def quantise(codebook, z):
    """The nearest entries. codebook: [k, c], z: [b, h, w, c] -> z_q like z, indices [b, h, w]."""
    z = z.astype(jnp.float32)
    # |z - e|^2 without |z|^2, which is the same for every entry
    products = jnp.einsum("bhwc,kc->bhwk", z, codebook, precision=jax.lax.Precision.HIGHEST)
    indices = jnp.argmin(jnp.sum(codebook**2, axis=-1) - 2.0 * products, axis=-1)
    return jnp.take(codebook, indices, axis=0), indices


def straight_through(z, z_q):
    """z_q in the forward pass, the gradient of z in the backward pass."""
    return z + jax.lax.stop_gradient(z_q - z)


def vq_loss(z, z_q, beta=0.25, legacy=True):
    """Codebook and commitment terms, a scalar. z, z_q: [b, h, w, c], z_q fresh from `quantise`.

    The paper weights the commitment term (which moves z) by beta. The official code weights the
    codebook term instead, and every published VQ model was trained so: `legacy=True`.
    """
    commitment = jnp.mean((jax.lax.stop_gradient(z_q) - z) ** 2)
    codebook = jnp.mean((z_q - jax.lax.stop_gradient(z)) ** 2)
    return commitment + beta * codebook if legacy else codebook + beta * commitment


def usage(indices, k):
    """The codebook's perplexity, and the fraction of its k entries that occur. indices: int."""
    counts = jnp.bincount(indices.reshape(-1), length=k)
    p = counts / indices.size
    perplexity = jnp.exp(-jnp.sum(p * jnp.log(p + 1e-10)))
    return {"perplexity": perplexity, "usage": jnp.mean((counts > 0).astype(jnp.float32))}
