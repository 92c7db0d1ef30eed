"""The patch discriminator of the first stage (Isola et al. 2017, as in VQ-GAN)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ldm_jax.nn import blocks


class PatchDiscriminator(nn.Module):
    """Logits of being real, one per patch. x: [b, h, w, 3] -> [b, h/2**layers - 2, ..., 1].

    norm="batch" always uses the statistics of the batch at hand (the global one, if it is sharded)
    and keeps no running ones: call it once for real and once for generated images, as the official
    code does. norm="group" is independent of the batch. norm="actnorm" learns an affine map, which
    starts by standardising the images that the module is initialised with.
    """

    width: int = 64
    layers: int = 3
    norm: str = "batch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = nn.leaky_relu(self._conv(self.width, 0, stride=2)(x), 0.2)
        for i in range(1, self.layers + 1):
            width = self.width * min(2**i, 8)
            stride = 2 if i < self.layers else 1
            x = self._conv(width, i, stride, use_bias=self.norm == "actnorm")(x)
            x = nn.leaky_relu(NORMS[self.norm](dtype=self.dtype, name=f"norm_{i}")(x), 0.2)
        return self._conv(1, self.layers + 1)(x).astype(jnp.float32)

    @nn.nowrap
    def _conv(self, width, i, stride=1, use_bias=True):
        how = {"kernel_init": nn.initializers.normal(0.02), "dtype": self.dtype}
        return nn.Conv(width, (4, 4), stride, 1, use_bias=use_bias, **how, name=f"conv_{i}")


class ActNorm(nn.Module):
    """Kingma & Dhariwal 2018: scale * (x + loc) per channel, float32. [b, h, w, c] -> same."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = x.astype(jnp.float32)
        axes = (0, 1, 2)
        loc = self.param("loc", lambda key: -jnp.mean(x, axes))
        scale = self.param("scale", lambda key: 1 / (jnp.std(x, axes, ddof=1) + 1e-6))
        return (scale * (x + loc)).astype(self.dtype)


class BatchNorm(nn.Module):
    """Ioffe & Szegedy 2015, by the batch's own statistics, in float32. [b, h, w, c] -> same."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        c = x.shape[-1]
        scale = self.param("scale", lambda key: 1 + 0.02 * jax.random.normal(key, (c,)))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        x = x.astype(jnp.float32)
        mean = jnp.mean(x, axis=(0, 1, 2))
        var = jnp.mean((x - mean) ** 2, axis=(0, 1, 2))
        factor = scale * jax.lax.rsqrt(var + 1e-5)
        return (x * factor + (bias - mean * factor)).astype(self.dtype)


NORMS = {"batch": BatchNorm, "group": blocks.GroupNorm, "actnorm": ActNorm}
