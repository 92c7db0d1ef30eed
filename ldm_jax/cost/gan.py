"""A generator of a GAN, for its speed alone: what few-step sampling is measured beside."""

import bisect
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ldm_jax.cost import flops

STYLE = 512  # of the latent and of the mapping network
WIDEST = 512


class Generator(nn.Module):
    """Images of a StyleGAN2 generator (Karras et al. 2020, arXiv 1912.04958, fig. 7).

    z: [b, STYLE] -> [b, size, size, 3]. It upsamples by repetition, where StyleGAN2 filters
    besides, so it is a little faster than one that would be trained.

    size: a power of two times 4. width: channels at `size` pixels; they double towards 4x4.
    """

    size: int
    width: int
    mapping: int = 8
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z):
        style = z
        for i in range(self.mapping):
            style = nn.leaky_relu(nn.Dense(STYLE, name=f"mapping_{i}")(style), 0.2)
        levels = (self.size // 4).bit_length()
        widths = [min(self.width * 2**i, WIDEST) for i in reversed(range(levels))]
        start = self.param("start", nn.initializers.normal(1.0), (4, 4, widths[0]))
        x, image = jnp.broadcast_to(start, (len(z), *start.shape)).astype(self.dtype), 0.0
        for level, width in enumerate(widths):
            if level:
                x, image = (jnp.repeat(jnp.repeat(y, 2, 1), 2, 2) for y in (x, image))
                x = Styled(width, dtype=self.dtype, name=f"up_{level}")(x, style)
            x = Styled(width, dtype=self.dtype, name=f"conv_{level}")(x, style)
            to_rgb = Styled(3, side=1, plain=True, dtype=self.dtype, name=f"rgb_{level}")
            image = image + to_rgb(x, style)
        return image.astype(jnp.float32)


class Styled(nn.Module):
    """A convolution whose kernel the style scales (ibid., eq. 1 to 3). [b, h, w, c], [b, STYLE].

    plain: neither demodulated nor with noise and an activation, as towards colours.
    """

    width: int
    side: int = 3
    plain: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, style):
        shape = self.side, self.side, x.shape[-1], self.width
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        scale = nn.Dense(x.shape[-1], name="style", bias_init=nn.initializers.ones)(style)
        # The kernel of every image is the same but for factors of inputs and outputs.
        x = x * scale[:, None, None].astype(self.dtype)
        how = dict(window_strides=(1, 1), padding="SAME")
        how["dimension_numbers"] = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel.astype(self.dtype), **how)
        if self.plain:
            return x + self.param("bias", nn.initializers.zeros, (self.width,))
        squares = jnp.sum(kernel**2, axis=(0, 1))
        norm = jax.lax.rsqrt(scale**2 @ squares + 1e-8)
        noise = jax.random.normal(jax.random.key(0), (*x.shape[:3], 1))
        strength = self.param("strength", nn.initializers.zeros, ())
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        x = x * norm[:, None, None] + strength * noise + bias
        return nn.leaky_relu(x, 0.2).astype(self.dtype)


def nearest(size: int, measure, wanted: float, dtype=jnp.float32) -> Generator:
    """The generator of images of `size` pixels whose `measure` comes next to `wanted`.

    measure: Generator -> a number that rises with its width, as `parameters` and `operations` are.
    """
    made = lambda width: Generator(size, 2 * width, dtype=dtype)
    widths = range(2, WIDEST // 2)
    above = bisect.bisect_left(widths, wanted, key=lambda width: measure(made(width)))
    near = [made(widths[min(max(i, 0), len(widths) - 1)]) for i in (above - 1, above)]
    return min(near, key=lambda one: abs(measure(one) - wanted))


def parameters(generator: Generator) -> int:
    """Without the mapping network, which StyleGAN2 has alike at every size."""
    params = variables(generator)["params"]
    own = {name: one for name, one in params.items() if not name.startswith("mapping")}
    return sum(leaf.size for leaf in jax.tree.leaves(own))


def operations(generator: Generator) -> float:
    """Floating-point operations of an image, see flops.py."""
    return flops.count(generator.apply, variables(generator), latent(1))


def latent(b: int):
    """The shape of z of b images."""
    return jax.ShapeDtypeStruct((b, STYLE), jnp.float32)


def variables(generator: Generator) -> dict:
    """The shapes of its variables."""
    return jax.eval_shape(generator.init, jax.eval_shape(lambda: jax.random.key(0)), latent(1))
