import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.base import errors
from ldm_jax.diffusion.tiles import Tiling


@pytest.mark.parametrize(
    ("length", "size", "overlap"), [(37, 8, 3), (8, 8, 2), (5, 8, 2), (64, 16, 8)]
)
def test_tiles_cover_everything_and_overlap_enough(length, size, overlap):
    starts = Tiling(size, overlap).starts(length)
    assert starts[0] == 0 and starts[-1] + min(size, length) == length
    assert np.all(np.diff(starts) <= size - overlap)


@pytest.mark.parametrize("shape", [(2, 37, 20, 3), (1, 8, 40, 1), (1, 6, 6, 2)])
@pytest.mark.parametrize("factor", [1, 4])
def test_what_works_cell_by_cell_does_not_notice_tiles(shape, factor):
    x = jax.random.normal(jax.random.key(0), shape)
    fn = lambda x: jnp.repeat(jnp.repeat(2 * x + 1, factor, 1), factor, 2)
    np.testing.assert_allclose(Tiling(8, 3).apply(fn, x, factor), fn(x), rtol=1e-5, atol=1e-5)


def test_no_more_than_a_tile_is_seen_at_once():
    seen = []

    def fn(inputs):
        seen.append(inputs["x"].shape)
        return inputs["x"] + inputs["y"]

    x, y = jnp.ones((1, 30, 9, 2)), jnp.ones((1, 30, 9, 1))
    out = Tiling(12, 4).apply(fn, {"x": x, "y": y})
    np.testing.assert_allclose(out, 2.0, rtol=1e-6)
    assert set(seen) == {(1, 12, 9, 2)}


def test_seams_do_not_show():
    """Tiles that disagree by a constant meet in a ramp: no step is larger than 1 / overlap."""

    def fn(x):  # each tile is off by its own mean, as normalised networks are
        return x - jnp.mean(x, axis=(1, 2), keepdims=True)

    slope = jnp.broadcast_to(jnp.arange(64.0)[None, None, :, None], (1, 64, 64, 1))
    blended, hard = (Tiling(16, overlap).apply(fn, slope)[0, 0, :, 0] for overlap in (8, 0))
    assert np.abs(np.diff(hard)).max() > 10  # saw teeth
    assert np.abs(np.diff(blended)).max() < 2.0


def test_an_overlap_as_large_as_the_tile_is_refused():
    with pytest.raises(errors.UsageError, match="overlap of 8"):
        Tiling(8, 8)
