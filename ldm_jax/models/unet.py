"""The denoiser's network: ADM's UNet with optional cross-attention.

Dhariwal & Nichol 2021; Rombach et al. 2022, sec. 3.3.
"""

import math
from typing import Annotated, Literal

import jax.numpy as jnp
from flax import linen as nn

from ldm_jax.base import errors
from ldm_jax.base.values import MOST, Above0, Factor, Fraction, Natural, Number, Positive, Positives
from ldm_jax.models.backbones import BACKBONES, CONTROL, Backbone
from ldm_jax.nn import attention, blocks


@BACKBONES.register("unet")
class UNet(Backbone):
    """The UNet of latent diffusion (Rombach et al. 2022), and its published variants.

    x: [b, h, w, c], t: [b] -> [b, h, w, out_channels] float32, zero at initialisation.

    width, mult: level l has width * mult[l] channels. blocks: residual blocks per level on the way
    down, one more on the way up. attention: downsampling factors, not sizes, at which attention
    follows each block; the middle always has it. heads or head_channels, not both: the number of
    heads, or channels per head. cross_attention: SpatialTransformers of `transformer_depth`, which
    see the tokens, in place of AttentionBlocks. groups: of the group norms; at a level with as many
    channels as groups they remove what the timestep adds, unless scale_shift is on.
    attention_kernel: see `attention.choose`. norm_kernel: xla, or pallas for the norms with SiLU
    behind them.

    The other arguments reproduce published variants. heads may also be a tuple, one number for each
    level. heads_up: heads on the way up. fill_heads=False: heads of exactly head_channels, even
    where they do not fill a transformer's width. codebook_logits: the output is logits over so many
    codebook entries. eps: of the group norms, but not of a transformer's; sin_first, freq_shift: of
    the time embedding; asymmetric: downsampling pads only below and to the right (all four as in
    diffusers' DDPM).
    """

    width: Annotated[int, Number(4, MOST, whole=True)] = 224
    mult: Positives = (1, 2, 3, 4)
    blocks: Positive = 2
    attention: tuple[Factor, ...] = (8, 4, 2)
    heads: Natural | tuple[Positive, ...] | None = None
    head_channels: Natural | None = None
    transformer_depth: Positive = 1  # layers of each SpatialTransformer
    cross_attention: bool = False
    dropout: Fraction = 0.0  # share of features that residual blocks drop
    scale_shift: bool = False  # the timestep scales features, too, and does not only shift them
    resblock_updown: bool = False  # residual blocks resample, not single convolutions
    resample_conv: bool = True  # what resamples has a convolution
    heads_up: Natural | None = None
    fill_heads: bool = True
    codebook_logits: Natural = 0
    eps: Above0 = 1e-5
    sin_first: bool = False
    freq_shift: int = 0
    asymmetric: bool = False
    groups: Positive = 32
    attention_kernel: Literal["xla", "cudnn", "pallas", "auto"] = "xla"
    norm_kernel: Literal["xla", "pallas"] = "xla"
    remat: bool = False
    remat_saves: Literal["", "products"] = ""

    @property
    def divisor(self):
        return 2 ** (len(self.mult) - 1)

    @property
    def width_unit(self):
        heads = self.head_channels or self.heads or 1
        heads = heads if isinstance(heads, tuple) else (heads,)
        return math.lcm(self.groups, self.heads_up or 1, *heads)

    @property
    def vector_width(self):
        return 4 * self.width

    @property
    def time_width(self):
        return self.width

    @property
    def control_width(self):
        return self.width

    @nn.nowrap
    def check(self):
        if bool(self.heads) == bool(self.head_channels):
            raise errors.UsageError(
                f"heads={self.heads or 0} and head_channels={self.head_channels or 0}: set one of "
                "them, the other 0."
            )
        levels = len(self.mult)
        if isinstance(self.heads, tuple) and len(self.heads) != levels:
            raise errors.UsageError(
                f"heads={self.heads}: give one number, or one for each of the {levels} levels of "
                f"mult={self.mult}."
            )
        ways = (False, True)  # going up
        places = {(i, way) for i in range(levels) for way in ways if 2**i in self.attention}
        for level, going_up in sorted(places | {(levels - 1, False)}):
            self._attention(self.width * self.mult[level], level, going_up)

    @nn.compact
    def __call__(
        self,
        x,
        t,
        tokens=None,
        vector=None,
        concat=None,
        mask=None,
        time=None,
        control=None,
        control_scale=None,
        train=False,
    ):
        """tokens: [b, n, d], seen where mask [b, n] is True; vector: [b, 4 * width], added to the
        time embedding; concat: [b, h, w, c2], channels appended to x; time: [b, width], added to
        the timestep's sinusoids; control: [b, h, w, width], which steers a ControlNet, whose
        outputs count control_scale [b] times."""
        self._check(x)
        x = x if concat is None else jnp.concatenate([x, concat], axis=-1)
        emb, seen, block = self._embed(t, vector, time), (tokens, mask), self._block()
        h, skips = self._encode(x, emb, seen, train)
        if control is not None:
            copy = ControlNet(**blocks.same_fields(self, UNet), name=CONTROL)
            scale = control_scale[:, None, None, None].astype(self.dtype)
            to_h, to_skips = copy(x, control, (t, vector, time), seen, train)
            h = h + scale * to_h
            skips = [skip + scale * own for skip, own in zip(skips, to_skips, strict=True)]

        for level, mult in reversed(list(enumerate(self.mult))):
            for i in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(width=self.width * mult, name=f"up_{level}_block_{i}")(h, emb, train)
                if 2**level in self.attention:
                    h = self._attend(f"up_{level}_attn_{i}", h, level, seen, going_up=True)
            if level:
                h = self._resample("up", f"up_{level}_upsample", h, emb, train)
        return self._head(h).astype(jnp.float32)

    @nn.nowrap
    def _encode(self, x, emb, seen, train, control=None):
        """Down and through the middle: (h, [what each step on the way down leaves for the way up]).

        seen: (tokens, mask). control: [b, h, w, width], added to what the first convolution makes.
        """
        block, last = self._block(), len(self.mult) - 1
        h = blocks.conv3x3(self.width, "conv_in", dtype=self.dtype)(x)
        h = h if control is None else h + control
        skips = [h]
        for level, mult in enumerate(self.mult):
            for i in range(self.blocks):
                h = block(width=self.width * mult, name=f"down_{level}_block_{i}")(h, emb, train)
                if 2**level in self.attention:
                    h = self._attend(f"down_{level}_attn_{i}", h, level, seen)
                skips.append(h)
            if level < last:
                h = self._resample("down", f"down_{level}_downsample", h, emb, train)
                skips.append(h)

        h = block(width=h.shape[-1], name="mid_block_1")(h, emb, train)
        h = self._attend("mid_attn", h, last, seen)
        return block(width=h.shape[-1], name="mid_block_2")(h, emb, train), skips

    @nn.nowrap
    def _attend(self, name, h, level, seen, going_up=False):
        layer = self._attention(h.shape[-1], level, going_up)
        return layer(name=name)(h, *(seen if self.cross_attention else ()))

    @nn.nowrap
    def _check(self, x):
        h, w = x.shape[1:3]
        factor = self.divisor
        if h % factor or w % factor:
            nearest = (max(round(side / factor), 1) * factor for side in (h, w))
            raise ValueError(
                f"A UNet of {len(self.mult)} levels takes sizes that divide by {factor}; "
                f"got {h}x{w}, nearest: {'x'.join(map(str, nearest))}."
            )
        if self.heads and self.head_channels:
            self.check()

    @nn.nowrap
    def _embed(self, t, vector, time):
        """Timesteps [b], with what is added behind and before -> [b, 4 * width]."""
        emb = blocks.timestep_embedding(t, self.width, self.sin_first, self.freq_shift)
        emb = emb if time is None else emb + time
        emb = nn.silu(blocks.dense(4 * self.width, "time_1", dtype=self.dtype)(emb))
        emb = blocks.dense(4 * self.width, "time_2", dtype=self.dtype)(emb)
        return emb if vector is None else emb + vector.astype(self.dtype)

    @nn.nowrap
    def _block(self):
        return blocks.layer(blocks.ResBlock, self, static_argnums=(3,), zero_init=True)

    @nn.nowrap
    def _attention(self, channels, level, going_up):
        """The constructor of the attention that fits so many channels."""
        heads = self.heads[level] if isinstance(self.heads, tuple) else self.heads or 1
        head_width = self.head_channels
        if going_up and self.heads_up and not self.cross_attention:
            heads, head_width = self.heads_up, None
        heads = channels // head_width if head_width else heads
        head_width = head_width or channels // heads
        if heads and self.cross_attention and self.fill_heads:
            head_width = channels // heads
        # Only a transformer that need not fill its channels has heads of any width.
        own = self.cross_attention and not self.fill_heads
        if not heads or not (own or heads * head_width == channels):
            raise errors.UsageError(
                f"{channels} channels (level {level}) cannot be split by heads={heads or None}, "
                f"head_channels={self.head_channels}: change one of these, or width."
            )
        if not self.cross_attention:
            return blocks.layer(attention.AttentionBlock, self, heads=heads, zero_init=True)
        given = {"heads": heads, "head_width": head_width, "depth": self.transformer_depth}
        return blocks.layer(attention.SpatialTransformer, self, **given)

    @nn.nowrap
    def _resample(self, direction, name, h, emb, train):
        if self.resblock_updown:
            block = self._block()(width=h.shape[-1], resample=direction, name=name)
            return block(h, emb, train)
        if direction == "up":
            return blocks.Upsample(self.resample_conv, dtype=self.dtype, name=name)(h)
        padding = blocks.ASYMMETRIC if self.asymmetric else blocks.SYMMETRIC
        return blocks.Downsample(self.resample_conv, padding, dtype=self.dtype, name=name)(h)

    @nn.nowrap
    def _head(self, h):
        if self.codebook_logits:
            h = blocks.GroupNorm(self.eps, self.groups, dtype=self.dtype, name="norm_ids")(h)
            return blocks.dense(self.codebook_logits, "to_ids", dtype=self.dtype)(h)
        norm = {"silu": True, "kernel": self.norm_kernel, "name": "norm_out"}
        h = blocks.GroupNorm(self.eps, self.groups, self.dtype, **norm)(h)
        zero = blocks.ZERO_INIT
        return blocks.conv3x3(self.out_channels, "conv_out", dtype=self.dtype, kernel_init=zero)(h)


class ControlNet(UNet):
    """A copy of a UNet's way down and middle that a control steers (Zhang et al. 2023, 2302.05543).

    What it makes passes through maps that start at zero, so that at first it changes nothing. Its
    arguments are those of the UNet.
    """

    @nn.compact
    def __call__(self, x, control, times, seen, train=False):
        """x: with what is concatenated to it; control: [b, h, w, width]; times: see `_embed`; seen:
        (tokens, mask). Returns what is added to the middle, and to each skip in its order."""
        h, skips = self._encode(x, self._embed(*times), seen, train, control.astype(self.dtype))
        how = dict(dtype=self.dtype, kernel_init=blocks.ZERO_INIT)
        zero = lambda name, h: blocks.dense(h.shape[-1], name, **how)(h)
        return zero("zero_mid", h), [zero(f"zero_{i}", skip) for i, skip in enumerate(skips)]
