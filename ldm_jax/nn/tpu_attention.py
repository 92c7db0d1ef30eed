"""Attention without logits in memory: a Pallas kernel for TPUs, with its backward.

One program holds all keys and values of an image, and takes a few queries at a time. Their logits
to all keys lie in the chip's own memory, so that a softmax is taken at once, nothing of it is kept
for the backward pass, and queries, keys and values are read and written once in the form that the
projections have: the channels of all heads beside one another.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ldm_jax.base import shard

LANES = 128  # channels that a TPU's registers hold beside one another
LOGITS = 2**17  # of one head that a program holds at a time, in float32
VMEM = 64 * 2**20  # bytes on the chip that a program may take
EXACT = lax.Precision.HIGHEST


def fits(q, k) -> bool:
    """Whether the kernel takes arrays of these shapes, [b, n or m, heads, d]; not for one key."""
    if q.shape[1] % LANES or q.shape[3] % 8 or k.shape[1] == 1:
        return False
    sizes = _Sizes(q, k)
    # Keys, values and their gradients, the next image's beside them, and two sums in float32.
    held = sizes.keys * sizes.block * (8 * q.dtype.itemsize + 8)
    return held + 6 * 4 * sizes.rows * sizes.keys <= VMEM


def attend(q, k, v, elsewhere=None):
    """softmax(q k^T / sqrt(d)) v. q: [b, n, heads, d]; k, v: [b, m, heads, d] -> like q.

    See `fits`. Each device takes its own images, queries and heads, of the mesh that the arrays lie
    on: XLA cannot split a kernel by itself. elsewhere: the same function, for other devices than
    TPUs; without it Pallas interprets the kernel there, slowly, which is good for tests alone.
    """
    own, mesh = functools.partial(_local, elsewhere), jax.typeof(q).sharding.mesh
    if mesh.empty or mesh.size == 1:
        return own(q, k, v)
    over = lambda axes, count: None if count % math.prod(mesh.shape[x] for x in axes) else axes
    rows, heads = over(shard.ROWS, q.shape[0]), over(("tensor",), q.shape[2])
    some = over(("spatial",), q.shape[1] // LANES)
    queries, keys = (jax.P(rows, part, heads, None) for part in (some, None))
    specs = {"in_specs": (queries, keys, keys), "out_specs": queries}
    return jax.shard_map(own, mesh=mesh, **specs, check_vma=False)(q, k, v)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _local(elsewhere, q, k, v):
    return _forward(elsewhere, q, k, v)


def _forward(elsewhere, q, k, v):
    sizes = _Sizes(q, k)
    call = functools.partial(
        pl.pallas_call,
        functools.partial(_forward_kernel, sizes=sizes),
        out_shape=[sizes.like(q)],
        grid=sizes.grid,
        in_specs=[sizes.some, sizes.all, sizes.all],
        out_specs=[sizes.some],
        compiler_params=sizes.compiler("parallel"),
        cost_estimate=sizes.cost(products=2, arrays=4),
    )
    plain = elsewhere and (lambda *x: [elsewhere(*x)])
    return _run(call, plain, q, k, v)[0]


def _backward(elsewhere, saved, gradient):
    q, k, v = saved
    sizes = _Sizes(q, k)
    call = functools.partial(
        pl.pallas_call,
        functools.partial(_backward_kernel, sizes=sizes),
        out_shape=[sizes.like(q), sizes.like(k), sizes.like(v)],
        grid=sizes.grid,
        in_specs=[sizes.some, sizes.all, sizes.all, sizes.some],
        out_specs=[sizes.some, sizes.all, sizes.all],
        scratch_shapes=[pltpu.VMEM((sizes.keys, sizes.block), jnp.float32)] * 2,
        compiler_params=sizes.compiler("arbitrary"),
        cost_estimate=sizes.cost(products=4, arrays=7),
    )
    plain = elsewhere and (lambda *x: [*jax.vjp(elsewhere, *x[:3])[1](x[3])])
    return tuple(_run(call, plain, q, k, v, gradient))


def _run(call, plain, *arrays):
    """Results of the shapes of the first arrays, from `call`, or elsewhere from `plain`."""

    def kernel(interpret, *arrays):
        found = call(interpret=interpret)(*(x.reshape(*x.shape[:2], -1) for x in arrays))
        return [y.reshape(x.shape) for y, x in zip(found, arrays)]

    tpu, interpreted = (functools.partial(kernel, way) for way in (False, True))
    return lax.platform_dependent(*arrays, tpu=tpu, default=plain or interpreted)


class _Sizes:
    """How the arrays are cut: whole heads side by side, in blocks of whole registers if that goes.

    heads: of a block; rows: queries of a program; block: channels of one.
    """

    def __init__(self, q, k):
        (self.images, self.queries, heads, self.width), self.keys = q.shape, k.shape[1]
        whole = math.lcm(LANES, self.width)
        self.block = whole if heads * self.width % whole == 0 else heads * self.width
        self.heads = self.block // self.width
        self.rows = max(LANES, min(self.queries, LOGITS // self.keys // LANES * LANES))
        while self.queries % self.rows:
            self.rows -= LANES
        self.grid = self.images, heads // self.heads, self.queries // self.rows
        self.some = pl.BlockSpec((1, self.rows, self.block), lambda b, h, i: (b, i, h))
        self.all = pl.BlockSpec((1, self.keys, self.block), lambda b, h, i: (b, 0, h))
        self._channels, self._dtype = heads * self.width, q.dtype

    def like(self, x):
        return jax.ShapeDtypeStruct((*x.shape[:2], self._channels), x.dtype)

    def compiler(self, along_queries: str):
        order = ("parallel", "parallel", along_queries)
        return pltpu.CompilerParams(dimension_semantics=order, vmem_limit_bytes=VMEM)

    def cost(self, products: int, arrays: int):
        """products: without the logits' second one, which is no work of the network's."""
        logits = self.images * self.queries * self.keys
        rows = self.images * (self.queries + self.keys) / 2 * arrays
        return pl.CostEstimate(
            flops=2 * products * logits * self._channels,
            transcendentals=logits * self._channels // self.width,
            bytes_accessed=int(rows * self._channels * self._dtype.itemsize),
        )

    def windows(self):
        """Of every head: the registers' lanes that it lies in, and which of them are its own."""
        for head in range(self.heads):
            first, last = head * self.width, (head + 1) * self.width
            lanes = slice(first // LANES * LANES, min(-(-last // LANES) * LANES, self.block))
            lane = lanes.start + lax.broadcasted_iota(jnp.int32, (1, lanes.stop - lanes.start), 1)
            yield lanes, (lane >= first) & (lane < last)


def _forward_kernel(q_ref, k_ref, v_ref, y_ref, *, sizes):
    for lanes, own in sizes.windows():
        q, k, v = (ref[0, :, lanes] for ref in (q_ref, k_ref, v_ref))
        y = _product(_softmax(_own(q, own), k, sizes).astype(v.dtype), v, 1, 0)
        y_ref[0, :, lanes] = jnp.where(own, y.astype(y_ref.dtype), y_ref[0, :, lanes])


def _backward_kernel(q_ref, k_ref, v_ref, dy_ref, dq_ref, dk_ref, dv_ref, dk_sum, dv_sum, *, sizes):
    @pl.when(pl.program_id(2) == 0)
    def _():
        dk_sum[...] = jnp.zeros_like(dk_sum)
        dv_sum[...] = jnp.zeros_like(dv_sum)

    for lanes, own in sizes.windows():
        q, k, v, dy = (ref[0, :, lanes] for ref in (q_ref, k_ref, v_ref, dy_ref))
        q, dy = _own(q, own), _own(dy, own)  # zeros in the place of other heads' channels
        p = _softmax(q, k, sizes)
        dp = _product(dy, v, 1, 1)
        along = jnp.sum(p * dp, axis=-1, keepdims=True)
        ds = (p * (dp - along) * sizes.width**-0.5).astype(q.dtype)
        dq = _product(ds, k, 1, 0).astype(dq_ref.dtype)
        dq_ref[0, :, lanes] = jnp.where(own, dq, dq_ref[0, :, lanes])
        dk_sum[:, lanes] += _product(ds, q, 0, 0)
        dv_sum[:, lanes] += _product(p.astype(dy.dtype), dy, 0, 0)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        dk_ref[0] = dk_sum[...].astype(dk_ref.dtype)
        dv_ref[0] = dv_sum[...].astype(dv_ref.dtype)


def _softmax(q, k, sizes):
    """float32 [rows, keys]."""
    logits = _product(q, k, 1, 1) * sizes.width**-0.5
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def _product(a, b, of_a: int, of_b: int):
    """float32, contracted over one axis of each."""
    precision = EXACT if a.dtype == jnp.float32 else None
    over = (((of_a,), (of_b,)), ((), ()))
    return lax.dot_general(a, b, over, precision, preferred_element_type=jnp.float32)


def _own(x, own):
    return jnp.where(own, x, jnp.zeros_like(x))


_local.defvjp(lambda elsewhere, *qkv: (_forward(elsewhere, *qkv), qkv), _backward)
