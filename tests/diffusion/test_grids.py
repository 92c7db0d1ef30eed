import numpy as np
import pytest

from ldm_jax.base.errors import UsageError
from ldm_jax.diffusion import grids
from ldm_jax.diffusion.process import make_process


@pytest.mark.parametrize("name", ["exact", "trailing"])
def test_every_step_count_gives_exactly_that_many_distinct_timesteps_from_the_top(name):
    for steps in range(1, 1001):
        grid = grids.GRIDS.get(name)(1000, steps)
        assert len(grid) == len(set(grid.timesteps)) == steps
        assert grid.timesteps[0] == 999
        assert grid.timesteps[-1] >= 0
        assert list(grid.timesteps) == sorted(grid.timesteps, reverse=True)
        assert grid.clean


def test_the_full_exact_grid_is_every_timestep():
    assert grids.exact(1000, 1000).timesteps == tuple(range(999, -1, -1))


def test_exact_strides_differ_by_one_at_most():
    for steps in (3, 7, 30, 333, 400):
        strides = -np.diff(grids.exact(1000, steps).timesteps)
        assert set(strides) <= {1000 // steps, 1000 // steps + 1}


def test_linspace_visits_both_ends():
    for steps in range(2, 1001):
        grid = grids.linspace(1000, steps)
        assert len(set(grid.timesteps)) == steps
        assert (grid.timesteps[0], grid.timesteps[-1]) == (999, 0)


def test_legacy_is_the_official_grid():
    assert grids.legacy(1000, 50).timesteps == tuple(range(981, 0, -20))
    assert grids.legacy(1000, 20).timesteps[:2] == (951, 901)
    counts = {1: 1, 30: 31, 150: 167, 200: 200, 400: 500, 500: 500}
    assert {steps: len(grids.legacy(1000, steps)) for steps in counts} == counts


@pytest.mark.parametrize(
    ("steps", "remedy"),
    [(3, "2 and 4"), (27, "26 and 28"), (300, "250 and 334"), (501, "500"), (1000, "500")],
)
def test_legacy_step_counts_that_crash_the_official_code_name_their_neighbours(steps, remedy):
    with pytest.raises(UsageError, match=f"timestep 1000 .*that work: {remedy};"):
        grids.legacy(1000, steps)


def test_legacy_ends_on_the_first_noise_level_and_the_others_on_clean_data():
    process = make_process()
    alpha_bar, alpha_bar_prev = grids.legacy(1000, 50).alpha_bars(process)
    assert alpha_bar_prev[-1] == process.alpha_bar[0]
    np.testing.assert_array_equal(alpha_bar[1:], alpha_bar_prev[:-1])
    assert grids.exact(1000, 50).alpha_bars(process)[1][-1] == 1.0


@pytest.mark.parametrize("steps", [0, -1, 1001])
@pytest.mark.parametrize("name", grids.GRIDS.names())
def test_impossible_step_counts_are_refused(name, steps):
    with pytest.raises(UsageError, match=r"1\.\.1000"):
        grids.GRIDS.get(name)(1000, steps)


def test_a_grid_longer_than_the_process_is_refused():
    with pytest.raises(UsageError, match=r"0\.\.19"):
        grids.exact(1000, 10).alpha_bars(make_process(timesteps=20))
