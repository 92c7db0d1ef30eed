"""The reader of compiled programs, on programs that are compiled here."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from ldm_jax.base import shard
from ldm_jax.cost import hlo


def compiled(function, *shapes, dtype=jnp.float32):
    # Without optimisation: what stays is what was written.
    options = {"xla_backend_optimization_level": 0}
    given = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return jax.jit(function, compiler_options=options).lower(*given).compile().as_text()


def work(text, side=1):
    [found] = hlo.matrix_work(hlo.parse(text), side)
    return found


def convolve(x, kernel, stride=1, dilation=1):
    names = ("NHWC", "HWIO", "NHWC")
    padding = ((1, 1), (1, 1))
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,) * 2, padding, (dilation,) * 2, dimension_numbers=names
    )


def test_a_products_flops_are_twice_its_three_sides():
    found = work(compiled(lambda a, b: a @ b, (24, 96), (96, 40)))
    assert found.flops == 2 * 24 * 96 * 40 == found.padded


def test_products_in_batches():
    found = work(compiled(lambda a, b: jnp.einsum("bik,bkj->bij", a, b), (5, 8, 32), (5, 32, 64)))
    assert found.flops == 5 * 2 * 8 * 32 * 64


def test_the_unit_fills_up_its_sides():
    found = work(compiled(lambda a, b: a @ b, (20, 96), (96, 130)), side=128)
    assert found.padded == 2 * 24 * 128 * 256


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_a_product_a_tap(stride):
    text = compiled(lambda x, k: convolve(x, k, stride), (2, 8, 8, 24), (3, 3, 24, 40))
    found = work(text, side=128)
    pixels = 2 * (8 // stride) ** 2
    assert found.flops == 2 * pixels * 9 * 24 * 40
    assert found.padded == 9 * 2 * max(8, pixels) * 128 * 128


def test_zeros_between_pixels_cost_nothing():
    text = compiled(lambda x, k: convolve(x, k, dilation=2), (2, 8, 8, 24), (3, 3, 24, 40))
    assert work(text).flops == pytest.approx(2 * 2 * 64 * 9 * 24 * 40, rel=0.15)


def sharded(function, *shapes, out):
    mesh = shard.make_mesh(data=8)
    given = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.NamedSharding(mesh, spec))
        for shape, spec in shapes
    ]
    out = jax.NamedSharding(mesh, out)
    return hlo.parse(jax.jit(function, out_shardings=out).lower(*given).compile().as_text())


def test_a_mean_over_devices_is_an_all_reduce_of_its_size():
    program = sharded(lambda x: x.sum(0), ((16, 256), P("data")), out=P())
    [found] = hlo.collectives(program)
    assert (found.kind, found.nbytes) == ("all-reduce", 256 * 4)


def test_gathering_yields_the_whole_on_every_device():
    program = sharded(lambda x: x + 1, ((64, 32), P("data")), out=P())
    [found] = hlo.collectives(program)
    assert (found.kind, found.nbytes) == ("all-gather", 64 * 32 * 4)


def test_one_device_has_no_collectives():
    assert not hlo.collectives(hlo.parse(compiled(lambda x: x.sum(0), (8, 8))))


BEGUN = """HloModule m, is_scheduled=true

%body (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %gather = (f32[8]{0}, f32[64]{0}) all-gather-start(%p), dimensions={0}
  %work = f32[8]{0} fusion(%p), kind=kLoop, calls=%fused
  %whole = f32[64]{0} all-gather-done(%gather)
  %turned = f32[8,2]{1,0} transpose(%other), dimensions={1,0}, metadata={op_name="z/a/b/c/turn"}
  %lone = (f32[8]{0}, f32[64]{0}) all-gather-start(%work), dimensions={0}
  ROOT %end = f32[64]{0} all-gather-done(%lone)
}
"""


def test_a_collective_overlaps_with_what_is_scheduled_before_its_end():
    found = hlo.collectives(hlo.parse(BEGUN))
    assert found == [
        hlo.Collective("all-gather", 64 * 4, overlaps=True),
        hlo.Collective("all-gather", 64 * 4, overlaps=False),
    ]
    assert hlo.moves(hlo.parse(BEGUN)) == [hlo.Move("transpose", "a/b/c/turn", 64)]


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
    def looped(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    program = hlo.parse(compiled(looped, (12, 64, 64), (8, 64)))
    assert sum(work.flops for work in hlo.matrix_work(program, 1)) == 12 * 2 * 8 * 64 * 64
    assert set(hlo.runs(program).values()) == {1, 12}


def total(text):
    return sum(one.nbytes for one in hlo.traffic(hlo.parse(text)))


def test_an_operation_reads_its_operands_and_writes_its_result():
    sides = (64, 32)
    assert total(compiled(lambda a, b: jnp.sin(a) + b, sides, sides)) == 3 * 64 * 32 * 4


def test_a_loop_reads_its_stacked_weights_once():
    def looped(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    stack, found = 12 * 64 * 64 * 4, total(compiled(looped, (12, 64, 64), (8, 64)))
    assert stack <= found < 4 * stack  # read, cut out, multiplied; 12 times as much if read whole


FILLED = """HloModule m, is_scheduled=true

%fused (p.0: f32[64,8], p.1: f32[1,8], p.2: s32[]) -> f32[64,8] {
  %p.0 = f32[64,8]{1,0} parameter(0)
  %p.1 = f32[1,8]{1,0} parameter(1)
  %p.2 = s32[] parameter(2)
  ROOT %filled = f32[64,8]{1,0} dynamic-update-slice(%p.0, %p.1, %p.2, %p.2)
}

ENTRY %main (x: f32[64,8], row: f32[1,8], i: s32[]) -> f32[64,8] {
  %x = f32[64,8]{1,0} parameter(0)
  %row = f32[1,8]{1,0:T(8,128)S(1)} parameter(1)
  %i = s32[] parameter(2)
  ROOT %out = f32[64,8]{1,0} fusion(%x, %row, %i), kind=kLoop, calls=%fused
}
"""


FETCHED = """HloModule m, is_scheduled=true

ENTRY %main (x: f32[64,8]) -> f32[64,8] {
  %x = f32[64,8]{1,0} parameter(0)
  %begun = (f32[64,8]{1,0:S(1)}, f32[64,8]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %near = f32[64,8]{1,0:S(1)} copy-done(%begun)
  ROOT %out = f32[64,8]{1,0} copy(%near)
}
"""


def test_what_is_fetched_to_the_chip_is_read_once():
    reads, writes = hlo.traffic(hlo.parse(FETCHED))
    assert reads.nbytes == 64 * 8 * 4 and writes.nbytes == 64 * 8 * 4


def test_what_is_filled_in_place_or_lies_on_the_chip_costs_no_traffic():
    [found] = hlo.traffic(hlo.parse(FILLED))
    assert found.nbytes == 8 * 4 + 4  # the row that is written, the index that is read
