"""Group normalisation with SiLU behind it, fused: a Pallas kernel (Triton) with its backward.

One program normalises one group of one image. It reads the group three times: for the mean, for the
variance around that mean, and for the output. The second and third time it comes from the GPU's
cache, and no float32 copy is ever written to memory. The backward pass works alike. On other
devices than GPUs Pallas interprets the kernel, slowly, which is good for tests alone.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

ELEMENTS = 4096  # numbers that a program holds at a time


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def group_norm(x, scale, bias, groups: int, eps: float, silu: bool):
    """x: [b, ..., c]; scale, bias: float32 [c] -> like x. Computed in float32."""
    return _forward(x, scale, bias, groups, eps, silu)[0]


def _forward(x, scale, bias, groups, eps, silu):
    b, c = x.shape[0], x.shape[-1]
    flat = x.reshape(b, -1, c)
    moment = jax.ShapeDtypeStruct((b, groups), jnp.float32)
    kernel = functools.partial(_forward_kernel, eps=eps, silu=silu)
    y, mean, factor = _call(kernel, (moment, moment), groups, flat, scale, bias)
    return y.reshape(x.shape), (x, scale, bias, mean, factor)


def _backward(groups, eps, silu, saved, dy):
    x, scale, bias, mean, factor = saved
    b, c = x.shape[0], x.shape[-1]
    flat = x.reshape(b, -1, c)
    weight = jax.ShapeDtypeStruct((b, c), jnp.float32)
    given = flat, scale, bias, mean, factor, dy.reshape(flat.shape)
    kernel = functools.partial(_backward_kernel, silu=silu)
    dx, dscale, dbias = _call(kernel, (weight, weight), groups, *given)
    return dx.reshape(x.shape), dscale.sum(0).astype(scale.dtype), dbias.sum(0).astype(bias.dtype)


group_norm.defvjp(_forward, _backward)


def _call(kernel, others, groups, flat, *rest):
    """The kernel's outputs: one like `flat`, then those whose shapes are `others`."""
    return pl.pallas_call(
        kernel,
        out_shape=(jax.ShapeDtypeStruct(flat.shape, flat.dtype), *others),
        grid=(flat.shape[0], groups),
        interpret=jax.default_backend() != "gpu",
        compiler_params=plt.CompilerParams(num_warps=4),
    )(flat, *rest)


def _forward_kernel(x_ref, scale_ref, bias_ref, y_ref, mean_ref, factor_ref, *, eps, silu):
    image, group = pl.program_id(0), pl.program_id(1)
    tiles = _Tiles(x_ref.shape, mean_ref.shape[1], image, group)
    count = tiles.count
    mean = tiles.sums(lambda at: (tiles.read(x_ref, at),), 1)[0].sum() / count
    # Around the mean: the difference of two moments would cancel where the mean is large.
    centred = lambda at: jnp.where(tiles.mask(at), tiles.read(x_ref, at) - mean, 0.0)
    variance = tiles.sums(lambda at: (jnp.square(centred(at)),), 1)[0].sum() / count
    factor = lax.rsqrt(variance + eps)
    scale, bias = tiles.channels(scale_ref), tiles.channels(bias_ref)

    def write(at, _):
        y = (tiles.read(x_ref, at) - mean) * factor * scale + bias
        tiles.write(y_ref, at, y * jax.nn.sigmoid(y) if silu else y)

    tiles.each(write)
    mean_ref[image, group] = mean
    factor_ref[image, group] = factor


def _backward_kernel(
    x_ref, scale_ref, bias_ref, mean_ref, factor_ref, dy_ref, dx_ref, dscale_ref, dbias_ref, *, silu
):
    image, group = pl.program_id(0), pl.program_id(1)
    tiles = _Tiles(x_ref.shape, mean_ref.shape[1], image, group)
    mean, factor = mean_ref[image, group], factor_ref[image, group]
    scale, bias = tiles.channels(scale_ref), tiles.channels(bias_ref)

    def normal(at):
        """The normalised x, and the gradient at scale * x + bias; both are 0 outside the group."""
        x = jnp.where(tiles.mask(at), (tiles.read(x_ref, at) - mean) * factor, 0.0)
        dy = tiles.read(dy_ref, at)
        if silu:
            y = x * scale + bias
            gate = jax.nn.sigmoid(y)
            dy *= gate * (1.0 + y * (1.0 - gate))
        return x, dy

    def products(at):
        x, dy = normal(at)
        return dy * x, dy

    dscale, dbias = (each.sum(0) for each in tiles.sums(products, 2))
    along = (dscale * scale[0]).sum() / tiles.count
    level = (dbias * scale[0]).sum() / tiles.count

    def write(at, _):
        x, dy = normal(at)
        tiles.write(dx_ref, at, (dy * scale - level - x * along) * factor)

    tiles.each(write)
    plt.store(dscale_ref.at[image, tiles.columns], dscale, mask=tiles.inside)
    plt.store(dbias_ref.at[image, tiles.columns], dbias, mask=tiles.inside)


class _Tiles:
    """The pixels of one group of one image, [n, channels of the group], in tiles of powers of 2."""

    def __init__(self, shape, groups, image, group):
        _, self.pixels, channels = shape
        width = channels // groups
        self.count, self._image = self.pixels * width, image
        wide = pl.next_power_of_2(width)
        self._rows = max(1, min(ELEMENTS // wide, pl.next_power_of_2(self.pixels)))
        lane = jnp.arange(wide)
        self.inside = lane < width
        self.columns = group * width + lane

    def each(self, function, carry=None):
        """Calls `function` with the pixels of every tile and with what it returned for the last."""
        call = lambda i, carry: function(i * self._rows + jnp.arange(self._rows), carry)
        return lax.fori_loop(0, pl.cdiv(self.pixels, self._rows), call, carry)

    def sums(self, function, count: int):
        """The sums over all tiles of the `count` arrays that `function` returns for each."""
        zero = jnp.zeros((self._rows, len(self.inside)), jnp.float32)
        add = lambda at, total: jax.tree.map(jnp.add, total, function(at))
        return self.each(add, (zero,) * count)

    def mask(self, at):
        return (at < self.pixels)[:, None] & self.inside[None, :]

    def _place(self, ref, at):
        return ref.at[self._image, at[:, None], self.columns[None, :]]

    def read(self, ref, at):
        return plt.load(self._place(ref, at), mask=self.mask(at), other=0.0).astype(jnp.float32)

    def write(self, ref, at, value):
        plt.store(self._place(ref, at), value.astype(ref.dtype), mask=self.mask(at))

    def channels(self, ref):
        """A weight's entries of this group, [1, channels]."""
        return plt.load(ref.at[self.columns], mask=self.inside, other=0.0)[None, :]
