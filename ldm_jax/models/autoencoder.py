"""The first stage: an autoencoder with a bottleneck, KL or VQ (Rombach et al. 2022, app. G).

Level 0 works on patches of the image, which are single pixels in published models; level l works at
a factor 2**l below it, on both sides.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from ldm_jax.base import registry
from ldm_jax.base.values import Factor, Fraction, Natural, Positive, Positives
from ldm_jax.models.bottleneck import BOTTLENECKS
from ldm_jax.models.shortcut import SHORTCUTS, images, patches
from ldm_jax.nn import attention, blocks

AUTOENCODERS = registry.Registry("autoencoder")
ATTENTION = {"softmax": attention.AttentionBlock, "linear": attention.LinearAttention}


class _Levels(nn.Module):
    """The arguments that an Autoencoder shares with both of its halves."""

    width: Positive = 128
    mult: Positives = (1, 2, 4)
    patch: Positive = 1
    blocks: Positive = 2
    attention: tuple[Factor, ...] = ()
    mid_attention: bool = True  # between the two middle blocks of each half
    attention_kind: Literal["softmax", "linear"] = "softmax"  # of all attention
    dropout: Fraction = 0.0  # share of features that residual blocks drop
    resample_conv: bool = True  # what resamples has a convolution
    groups: Positive = 32
    attention_kernel: Literal["xla", "cudnn", "pallas", "auto"] = "xla"
    norm_kernel: Literal["xla", "pallas"] = "xla"
    remat: bool = False
    remat_saves: Literal["", "products"] = ""
    dtype: Any = jnp.float32

    @nn.nowrap
    def factor(self, level):
        """What level `level` works at, downsampled from the image."""
        return self.patch * 2**level


@AUTOENCODERS.register("autoencoder")
class Autoencoder(_Levels):
    """Images [b, h, w, 3] in [-1, 1] to latents [b, h/f, w/f, c] and back.

    f = patch * 2**(len(mult) - 1) * fold.

    width, mult: level l has width * mult[l] channels. patch: pixels of a side that a position of
    level 0 stands for, which makes that level patch**2 times cheaper than one of single pixels.
    fold: positions of a side of the lowest level that a position of the latent stands for.
    blocks: residual blocks per level, one more in the decoder. attention: downsampling factors at
    which attention follows each block; mid_attention: the one between the two middle blocks of each
    half; attention_kind: "softmax" or "linear". z_channels: channels that encoder and decoder see
    at a position of the lowest level; latent_channels: those of the latent itself (the official
    `embed_dim`), between two 1x1 maps.
    posterior_logvar: the log variance that a "kl" bottleneck starts from, and that "noise" keeps.
    groups: of the group norms; norm_kernel: "xla", or "pallas" for those with SiLU behind them.
    attention_kernel: of softmax attention, see `attention.choose`.
    shortcut: a path beside the stack (models/shortcut.py), whose latents are added to the stack's,
    and its images too; "" none.

    The kernel of the decoder's last convolution is params["decoder"]["conv_out"]["kernel"].
    """

    fold: Positive = 1
    z_channels: Positive = 3
    latent_channels: Positive = 3
    bottleneck: str = "kl"
    codebook_size: Natural = 8192
    image_channels: Positive = 3  # of the images
    posterior_logvar: float = 0.0
    tanh_out: bool = False  # images are bent into [-1, 1]
    shortcut: str = ""

    @property
    def f(self):
        return self.factor(len(self.mult) - 1) * self.fold

    @property
    def path_fold(self):
        """Positions of a side of the path that a position of the latent stands for."""
        return self.fold if self.shortcut and SHORTCUTS.get(self.shortcut).folded else 1

    def setup(self):
        self.between = BOTTLENECKS.get(self.bottleneck)
        shared = blocks.same_fields(self, _Levels)
        moments = 1 if self.between.fixed else self.between.moments
        self.encoder = Encoder(**shared, out_channels=moments * self.z_channels)
        self.decoder = Decoder(**shared, out_channels=self.image_channels * self.patch**2)
        # These two maps compute in float32 whatever `dtype` is, and whatever a device makes of
        # float32 by default: they cost little, and the latents between them are what is stored.
        exact = dict(dtype=jnp.float32, precision=jax.lax.Precision.HIGHEST)
        narrow = lambda key, shape, dtype=jnp.float32: jnp.where(
            jnp.arange(shape[0]) < self.latent_channels, 0.0, self.posterior_logvar
        ).astype(dtype)
        width = moments * self.latent_channels
        self.to_latent = blocks.dense(width, None, bias_init=narrow, **exact)
        self.from_latent = blocks.dense(self.z_channels * self.fold**2, None, **exact)
        if self.shortcut:
            sizes = self.f // self.path_fold, self.latent_channels // self.path_fold**2
            self.beside = SHORTCUTS.get(self.shortcut)(*sizes, self.image_channels)
        wanted = self.between.parameters(self.codebook_size, self.latent_channels)
        self.own = {name: self.param(name, *how) for name, how in wanted.items()}

    def encode(self, x, train=False):
        """[b, h, w, 3] -> the bottleneck's moments [b, h/f, w/f, moments * c], not quantised."""
        h, w = x.shape[1:3]
        if h % self.f or w % self.f:
            raise ValueError(
                f"Image size {h}x{w} does not divide by the downsampling factor {self.f}."
            )
        lowest = self.encoder(patches(x, self.patch), train).astype(jnp.float32)
        moments = self.to_latent(patches(lowest, self.fold))
        if self.between.fixed:
            logvar = jnp.full_like(moments, self.posterior_logvar)
            moments = jnp.concatenate([moments, logvar], axis=-1)
        if not self.shortcut:
            return moments
        rest = moments.shape[-1] - self.latent_channels  # log variances, which the path leaves
        path = patches(self.beside.encode(x), self.path_fold)
        return moments + jnp.pad(path, ((0, 0), (0, 0), (0, 0), (0, rest)))

    def decode(self, z, train=False, quantise=True):
        """[b, h/f, w/f, c] -> [b, h, w, 3]. quantise: first, where the bottleneck does."""
        z = z.astype(jnp.float32)
        z = self.between.quantise(self.own, z) if quantise else z
        path = self.beside.decode(images(z, self.path_fold)) if self.shortcut else None
        shown = path if self.shortcut and self.beside.shown else None
        lowest = images(self.from_latent(z), self.fold)
        x = self.decoder(lowest, train, shown).astype(jnp.float32)
        x = images(x, self.patch)
        x = x if path is None else path + x
        return jnp.tanh(x) if self.tanh_out else x

    def __call__(self, x, train=False):
        """The reconstruction of the mode. `init` goes through it, so it uses every parameter."""
        return self.decode(self.between.mode(self.encode(x, train)), train)


class _Half(_Levels):
    """What the two halves have in common."""

    out_channels: int = 3
    eps: float = 1e-6  # of its norms

    @nn.nowrap
    def layers(self):
        """Constructors of (residual block, attention block), rematerialised where asked."""
        attend = blocks.layer(ATTENTION[self.attention_kind], self)
        return blocks.layer(blocks.ResBlock, self, static_argnums=(3,)), attend

    @nn.nowrap
    def middle(self, x, train):
        block, attend = self.layers()
        x = block(width=x.shape[-1], name="mid_block_1")(x, None, train)
        x = attend(name="mid_attn")(x) if self.mid_attention else x
        return block(width=x.shape[-1], name="mid_block_2")(x, None, train)

    @nn.nowrap
    def head(self, x):
        norm = {"silu": True, "kernel": self.norm_kernel}
        x = blocks.GroupNorm(self.eps, self.groups, self.dtype, **norm, name="norm_out")(x)
        # The adaptive weight of the adversarial loss differentiates the last convolution alone.
        self.sow("intermediates", "last_features", x)
        return blocks.conv3x3(self.out_channels, "conv_out", dtype=self.dtype)(x)


class Encoder(_Half):
    """Patches [b, h, w, c] -> [b, h/f, w/f, out_channels], f here without the patch."""

    @nn.compact
    def __call__(self, x, train=False):
        block, attend = self.layers()
        x = blocks.conv3x3(self.width, "conv_in", dtype=self.dtype)(x)
        for level, mult in enumerate(self.mult):
            for i in range(self.blocks):
                x = block(width=self.width * mult, name=f"down_{level}_block_{i}")(x, None, train)
                if self.factor(level) in self.attention:
                    x = attend(name=f"down_{level}_attn_{i}")(x)
            if level < len(self.mult) - 1:
                down = functools.partial(blocks.Downsample, self.resample_conv, blocks.ASYMMETRIC)
                x = down(self.dtype, name=f"down_{level}_downsample")(x)
        return self.head(self.middle(x, train))


class Decoder(_Half):
    """The way back, to patches [b, h, w, out_channels].

    path: an image that every level sees, as patches of its pixels.
    """

    @nn.compact
    def __call__(self, x, train=False, path=None):
        block, attend = self.layers()
        x = blocks.conv3x3(self.width * self.mult[-1], "conv_in", dtype=self.dtype)(x)
        x = self.middle(x, train)
        for level, mult in reversed(list(enumerate(self.mult))):
            if path is not None:
                seen = patches(path, self.factor(level))
                x = x + blocks.dense(x.shape[-1], f"up_{level}_path", dtype=self.dtype)(seen)
            for i in range(self.blocks + 1):
                x = block(width=self.width * mult, name=f"up_{level}_block_{i}")(x, None, train)
                if self.factor(level) in self.attention:
                    x = attend(name=f"up_{level}_attn_{i}")(x)
            if level:
                up = functools.partial(blocks.Upsample, self.resample_conv, self.dtype)
                x = up(name=f"up_{level}_upsample")(x)
        return self.head(x)
