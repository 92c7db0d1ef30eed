"""Convolutional blocks of the autoencoder (Rombach et al. 2022) and the UNet (ADM).

ADM is Dhariwal & Nichol 2021. Everything is NHWC. Parameters are float32, `dtype` is the compute
dtype, and norms compute in float32. Kernels start as torch's default does, uniform within
1/sqrt(fan_in); biases start at zero.
"""

import dataclasses
import functools
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
ZERO_INIT = nn.initializers.zeros

SYMMETRIC = ((1, 1), (1, 1))
# The official autoencoder pads only below and to the right before a stride-2 convolution.
ASYMMETRIC = ((0, 1), (0, 1))


def conv3x3(width, name, *, dtype, stride=1, padding=SYMMETRIC, kernel_init=KERNEL_INIT):
    """A 3x3 convolution with bias. [b, h, w, c] -> [b, h/stride, w/stride, width]."""
    return nn.Conv(width, (3, 3), stride, padding, kernel_init=kernel_init, dtype=dtype, name=name)


def dense(width, name, *, dtype, kernel_init=KERNEL_INIT, **kwargs):
    """A linear map of the last axis; on an image it is the 1x1 convolution."""
    return nn.Dense(width, kernel_init=kernel_init, dtype=dtype, name=name, **kwargs)


def same_fields(module, kind) -> dict:
    """The values of those fields of a module that modules of the class `kind` have too.

    So a setting which a network hands down to its parts is named in both, and nowhere between.
    """
    own, theirs = ({f.name for f in dataclasses.fields(each)} for each in (module, kind))
    return {name: getattr(module, name) for name in sorted(own & theirs - {"parent", "name"})}


# What the forward pass keeps. Of the products, attention's logits have a batch axis and are left
# out: they would take more memory than all others together.
REMAT_SAVES = {
    "": None,
    "products": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        lambda primitive, *_, **__: primitive is jax.lax.conv_general_dilated_p,
    ),
}


def layer(kind, network, static_argnums=(), **fields):
    """The constructor of a layer of a network: it needs only the name, and fields not given here.

    kind: the layer's class. It gets `fields`, and those fields of the network that it has too.
    Where `network.remat`, the layer is rematerialised: the backward pass computes its inside again,
    except for what `network.remat_saves`, a key of REMAT_SAVES, names. A network may lack both.
    """
    fields = same_fields(network, kind) | fields
    if getattr(network, "remat", False):
        policy = REMAT_SAVES[getattr(network, "remat_saves", "")]
        kind = nn.remat(kind, policy=policy, static_argnums=static_argnums)
    return functools.partial(kind, **fields)


class DenseParts(nn.Module):
    """Several linear maps of one input, such as q, k and v. [..., c] -> `parts` of [..., width].

    The parameters are those of Dense(parts * width): the maps' kernels lie side by side in one. Yet
    each map is multiplied by itself, because the two other ways cost more. If one wide output were
    cut into the maps, then on a mesh that splits its columns the devices would have to exchange
    them. If the maps were one more axis of the kernel, a TPU would keep the kernel's gradient
    transposed, and would copy the weights and the optimizer's moments at every step to match.
    """

    parts: int
    width: int
    use_bias: bool = True
    kernel_init: Any = KERNEL_INIT
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        shape = x.shape[-1], self.parts * self.width
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        parts = [x.astype(self.dtype) @ part for part in jnp.split(kernel, self.parts, axis=1)]
        if self.use_bias:
            bias = self.param("bias", ZERO_INIT, shape[1:]).astype(self.dtype)
            parts = [y + part for y, part in zip(parts, jnp.split(bias, self.parts))]
        return parts


def timestep_embedding(t, width, sin_first=False, freq_shift=0):
    """Sinusoids of the timestep (Ho et al. 2020), cosines first unless `sin_first`.

    t: [b] -> [b, width] float32. freq_shift: with 1 the lowest frequency is exactly 1 / 10,000,
    with 0 it is a little higher.
    """
    half = width // 2
    # numpy, so that the frequencies are the same float32 numbers on every backend
    steps = np.arange(half, dtype=np.float32) / (half - freq_shift)
    freqs = np.exp(np.float32(-np.log(10_000.0)) * steps)
    angles = t.astype(jnp.float32)[:, None] * freqs
    parts = [jnp.cos(angles), jnp.sin(angles)]
    emb = jnp.concatenate(parts[::-1] if sin_first else parts, axis=-1)
    return jnp.pad(emb, ((0, 0), (0, width % 2)))


def upsample_nearest(x):
    """[b, h, w, c] -> [b, 2h, 2w, c]."""
    return einops.repeat(x, "b h w c -> b (h i) (w j) c", i=2, j=2)


def downsample_average(x):
    """[b, h, w, c] -> [b, h/2, w/2, c], the mean of each 2x2 square."""
    return nn.avg_pool(x, (2, 2), strides=(2, 2))


def fitting_groups(channels, groups):
    """The number of groups that `GroupNorm` makes of so many channels.

    It is `groups` wherever that divides the channels, as in the official models, even if only one
    channel is left to each group. A norm over a single channel removes every shift of that channel,
    and with it what the timestep adds, so a recipe with so few channels sets fewer `groups`. Where
    `groups` does not divide the channels, the result is the largest divisor that leaves at least
    four channels to each group, or 1.
    """
    if channels % groups == 0:
        return groups
    most = max(1, min(groups, channels // 4))
    return next(g for g in range(most, 0, -1) if channels % g == 0)


NORM_KERNELS = ("xla", "pallas")


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018), computed in float32, SiLU behind it where asked.

    [b, ..., c] -> same. groups: see `fitting_groups`. kernel: "xla", the formula below, or
    "pallas", the kernel of nn/group_norm.py.
    """

    eps: float = 1e-5
    groups: int = 32
    dtype: Any = jnp.float32
    silu: bool = False
    kernel: str = "xla"

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        groups = fitting_groups(channels, self.groups)
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        if self.kernel == "pallas":
            from ldm_jax.nn.group_norm import group_norm

            return group_norm(x, scale, bias, groups, self.eps, self.silu).astype(self.dtype)

        # First the moments of each channel, then of each group: so the image is never reshaped, and
        # an element costs one multiplication and one addition. Each channel is measured from its
        # first pixel, as E[x^2] - E[x]^2 would lose its digits where a mean is large.
        x = x.astype(jnp.float32)
        space = tuple(range(1, x.ndim - 1))
        size = channels // groups
        first = jax.lax.stop_gradient(x[:, *(slice(1) for _ in space)])
        x, first = x - first, jnp.squeeze(first, space)
        of_group = lambda a: einops.repeat(
            einops.reduce(a, "b (g c) -> b g", "mean", g=groups), "b g -> b (g c)", c=size
        )
        offset, square = jnp.mean(x, space), jnp.mean(x * x, space)
        mean = of_group(first + offset)
        variance = of_group(square - offset * offset + jnp.square(first + offset - mean))
        factor = scale * jax.lax.rsqrt(jnp.maximum(variance, 0.0) + self.eps)
        shift = bias + (first - mean) * factor
        factor, shift = jnp.expand_dims(factor, space), jnp.expand_dims(shift, space)
        y = (x * factor + shift).astype(self.dtype)
        return nn.silu(y) if self.silu else y


class Downsample(nn.Module):
    """Halves the resolution by a convolution or a mean. [b, h, w, c] -> [b, h/2, w/2, c]."""

    conv: bool = True
    padding: tuple = SYMMETRIC
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        if not self.conv:
            return downsample_average(x)
        return conv3x3(x.shape[-1], "conv", stride=2, padding=self.padding, dtype=self.dtype)(x)


class Upsample(nn.Module):
    """Doubles the resolution: nearest, then a convolution. [b, h, w, c] -> [b, 2h, 2w, c]."""

    conv: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = upsample_nearest(x)
        return conv3x3(x.shape[-1], "conv", dtype=self.dtype)(x) if self.conv else x


class ResBlock(nn.Module):
    """GN-SiLU-conv, twice, a time shift between. x: [b, h, w, c], emb: [b, d] -> [b, h, w, width].

    `scale_shift` modulates the second norm instead of adding (ADM's AdaGN); `resample` ("up" or
    "down") changes the resolution of both branches, without parameters, after the first norm.
    """

    width: int
    eps: float = 1e-5
    dropout: float = 0.0
    zero_init: bool = False
    scale_shift: bool = False
    resample: str | None = None
    groups: int = 32
    norm_kernel: str = "xla"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, emb=None, train=False):
        norm = (self.eps, self.groups, self.dtype)
        h = GroupNorm(*norm, silu=True, kernel=self.norm_kernel, name="norm_1")(x)
        if self.resample:
            change = {"up": upsample_nearest, "down": downsample_average}[self.resample]
            h, x = change(h), change(x)
        h = conv3x3(self.width, "conv_1", dtype=self.dtype)(h)

        modulated = self.scale_shift and emb is not None
        norm_2 = GroupNorm(*norm, silu=not modulated, kernel=self.norm_kernel, name="norm_2")
        if emb is not None:
            shifts = self.width * (2 if self.scale_shift else 1)
            emb = dense(shifts, "time", dtype=self.dtype)(nn.silu(emb))[:, None, None]
        if modulated:
            scale, shift = jnp.split(emb, 2, axis=-1)
            h = nn.silu(norm_2(h) * (1 + scale) + shift)
        else:
            h = norm_2(h if emb is None else h + emb)
        h = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(h)

        init = ZERO_INIT if self.zero_init else KERNEL_INIT
        h = conv3x3(self.width, "conv_2", dtype=self.dtype, kernel_init=init)(h)
        if x.shape[-1] != self.width:
            x = dense(self.width, "skip", dtype=self.dtype)(x)
        return x + h
