"""A tiny autoencoder (madebyollin's TAESD family): cheap latents for previews, small machines."""

from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn

from ldm_jax.base.values import Amount, Number, Positive
from ldm_jax.models import shortcut
from ldm_jax.models.autoencoder import AUTOENCODERS
from ldm_jax.nn import blocks


@AUTOENCODERS.register("tiny")
class TinyAutoencoder(nn.Module):
    """Images [b, h, w, 3] in [-1, 1] to latents [b, h/f, w/f, c] and back, without a bottleneck.

    Encoder and decoder have one residual block each at the highest resolution, and `blocks` at
    every lower one. pool: the blocks of the lowest begin with two 1x1 convolutions around a group
    norm, added to their input (TAEF2). bound: latents are bent to stay within it; 0 leaves them.
    patch: pixels of a side that a position of the highest resolution stands for; with 2, that level
    takes a quarter of the work. f = patch * 2**(levels - 1).
    """

    width: Positive = 64  # channels of all levels
    latent_channels: Positive = 32  # those of the latent
    levels: Annotated[int, Number(1, 16, whole=True)] = 4  # resolutions, each half the last one
    blocks: Positive = 3  # residual blocks at each level but the highest
    pool: bool = True
    bound: Amount = 3.0
    patch: Positive = 1
    dtype: Any = jnp.float32

    bottleneck: ClassVar[str] = "none"
    image_channels: ClassVar[int] = 3

    @property
    def f(self):
        return self.patch * 2 ** (self.levels - 1)

    def setup(self):
        own, pixels = blocks.same_fields(self, _Half), self.patch**2
        self.encoder = Encoder(**own, out_channels=self.latent_channels)
        self.decoder = Decoder(**own, out_channels=pixels * self.image_channels)

    def encode(self, x, train=False):
        return self.encoder(shortcut.patches((x + 1) / 2, self.patch)).astype(jnp.float32)

    def decode(self, z, train=False):
        z = z.astype(jnp.float32)
        z = jnp.tanh(z / self.bound) * self.bound if self.bound else z
        return 2 * shortcut.images(self.decoder(z), self.patch).astype(jnp.float32) - 1

    def __call__(self, x, train=False):
        return self.decode(self.encode(x))


class _Half(nn.Module):
    width: int
    levels: int
    blocks: int
    pool: bool
    dtype: Any
    out_channels: int

    @nn.nowrap
    def conv(self, name, width=None, **kwargs):
        kwargs |= {"padding": 1, "dtype": self.dtype, "name": name}
        return nn.Conv(width or self.width, (3, 3), **kwargs)

    @nn.nowrap
    def level(self, x, level):
        pool = self.pool and level == self.levels - 1
        for i in range(self.blocks if level else 1):
            x = Block(self.width, pool, self.dtype, name=f"block_{level}_{i}")(x)
        return x


class Encoder(_Half):
    """Patches of [0, 1], [b, h, w, c] -> [b, h/f, w/f, out_channels], f here without the patch."""

    @nn.compact
    def __call__(self, x):
        x = self.level(self.conv("conv_in")(x), 0)
        for level in range(1, self.levels):
            x = self.conv(f"down_{level}", strides=2, use_bias=False)(x)
            x = self.level(x, level)
        return self.conv("conv_out", self.out_channels)(x)


class Decoder(_Half):
    """The way back, to [b, h, w, out_channels] about [0, 1]."""

    @nn.compact
    def __call__(self, z):
        x = nn.relu(self.conv("conv_in")(z))
        for level in reversed(range(1, self.levels)):
            x = blocks.upsample_nearest(self.level(x, level))
            x = self.conv(f"up_{level}", use_bias=False)(x)
        x = self.level(x, 0)
        self.sow("intermediates", "last_features", x)
        return self.conv("conv_out", self.out_channels)(x)


class Block(nn.Module):
    """relu(x + three convolutions of x). x: [b, h, w, width] -> same."""

    width: int
    pool: bool
    dtype: Any

    @nn.compact
    def __call__(self, x):
        if self.pool:
            dense = lambda width, name: blocks.dense(width, name, dtype=self.dtype, use_bias=False)
            h = dense(4 * self.width, "pool_in")(x)
            h = nn.relu(blocks.GroupNorm(1e-5, 4, self.dtype, name="pool_norm")(h))
            x = x + dense(self.width, "pool_out")(h)
        h = x
        for i in range(3):
            h = nn.relu(h) if i else h
            h = nn.Conv(self.width, (3, 3), padding=1, dtype=self.dtype, name=f"conv_{i + 1}")(h)
        return nn.relu(x + h)
