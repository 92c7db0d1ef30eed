import numpy as np
import pytest

from ldm_jax.base.errors import UsageError
from ldm_jax.diffusion import grids
from ldm_jax.diffusion.process import make_process

PROCESS = make_process()
TERMINAL = make_process(prediction="v", zero_terminal_snr=True)


@pytest.mark.parametrize("name", ["exact", "trailing"])
def test_every_step_count_gives_exactly_that_many_distinct_timesteps_from_the_top(name):
    for steps in range(1, 1001):
        grid = grids.GRIDS.get(name)(PROCESS, steps)
        assert len(grid) == len(set(grid.timesteps)) == steps
        assert grid.timesteps[0] == 999
        assert grid.timesteps[-1] >= 0
        assert list(grid.timesteps) == sorted(grid.timesteps, reverse=True)
        assert (grid.signal[-1], grid.noise[-1]) == grids.CLEAN


def test_the_full_exact_grid_is_every_timestep():
    assert grids.exact(PROCESS, 1000).timesteps == tuple(range(999, -1, -1))


def test_exact_strides_differ_by_one_at_most():
    for steps in (3, 7, 30, 333, 400):
        strides = -np.diff(grids.exact(PROCESS, steps).timesteps)
        assert set(strides) <= {1000 // steps, 1000 // steps + 1}


def test_linspace_visits_both_ends():
    for steps in range(2, 1001):
        grid = grids.linspace(PROCESS, steps)
        assert len(set(grid.timesteps)) == steps
        assert (grid.timesteps[0], grid.timesteps[-1]) == (999, 0)


def test_legacy_is_the_official_grid():
    assert grids.legacy(PROCESS, 50).timesteps == tuple(range(981, 0, -20))
    assert grids.legacy(PROCESS, 20).timesteps[:2] == (951, 901)
    counts = {1: 1, 30: 31, 150: 167, 200: 200, 400: 500, 500: 500}
    assert {steps: len(grids.legacy(PROCESS, steps)) for steps in counts} == counts


@pytest.mark.parametrize(
    ("steps", "remedy"),
    [(3, "2 and 4"), (27, "26 and 28"), (300, "250 and 334"), (501, "500"), (1000, "500")],
)
def test_legacy_step_counts_that_crash_the_official_code_name_their_neighbours(steps, remedy):
    with pytest.raises(UsageError, match=f"timestep 1000 .*that work: {remedy};"):
        grids.legacy(PROCESS, steps)


def test_only_legacy_ends_on_the_first_noise_level():
    for name in grids.GRIDS.names():
        grid = grids.GRIDS.get(name)(PROCESS, 50)
        assert len(grid.signal) == len(grid.noise) == len(grid) + 1
        first = PROCESS.signal[0], PROCESS.noise[0]
        assert (grid.signal[-1], grid.noise[-1]) == (first if name == "legacy" else grids.CLEAN)


@pytest.mark.parametrize("name", grids.GRIDS.names())
@pytest.mark.parametrize("process", [PROCESS, TERMINAL], ids=["plain", "zero_terminal_snr"])
def test_what_the_network_is_told_is_the_level_it_sees(name, process):
    grid = grids.GRIDS.get(name)(process, 40)
    alpha = process.alpha(np.asarray(grid.timesteps))
    np.testing.assert_allclose(alpha, np.sqrt(grid.signal[:-1]), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 27, 37, 300, 400, 999, 1000])
@pytest.mark.parametrize("process", [PROCESS, TERMINAL], ids=["plain", "zero_terminal_snr"])
def test_karras_levels_are_even_in_a_power_of_the_noise_ratio(process, steps):
    grid = grids.karras(process, steps)
    levels = np.asarray(grid.signal)
    assert len(grid) == steps
    assert np.all(np.diff(levels) > 0)
    assert grid.timesteps[0] == pytest.approx(999)
    assert levels[0] == pytest.approx(process.signal[-1])
    finite = levels[levels > 0][:-1]
    if len(finite) > 1:
        assert finite[-1] == pytest.approx(process.signal[0])
        roots = (1 / finite - 1) ** (1 / 14)
        np.testing.assert_allclose(np.diff(roots), np.diff(roots)[0], rtol=1e-6)


@pytest.mark.parametrize("process", [PROCESS, TERMINAL], ids=["plain", "zero_terminal_snr"])
def test_the_shifted_grid_moves_exacts_times_and_keeps_its_ends(process):
    plain, moved = grids.exact(process, 20), grids.shifted(process, 20, shift=3.0)
    assert grids.shifted(process, 20).timesteps == pytest.approx(plain.timesteps)
    u = (np.array(plain.timesteps) + 1) / 1000
    np.testing.assert_allclose((np.array(moved.timesteps) + 1) / 1000, 3 * u / (1 + 2 * u))
    assert moved.signal[0] == pytest.approx(plain.signal[0])


@pytest.mark.parametrize("shift", [0.5, 0.0, np.inf, np.nan, 1e6])
def test_shifts_that_leave_no_grid_are_refused(shift):
    with pytest.raises(UsageError, match=f"shift={shift}"):
        grids.shifted(TERMINAL, 20, shift=shift)


def test_flows_grid_is_the_published_one():
    """sigma' = s sigma / (1 + (s - 1) sigma), of 1, 1 - 1/S, ... (Esser et al. 2024, eq. 23)."""
    grid = grids.shifted(make_process("straight", prediction="flow"), 10, shift=3.0)
    sigma = np.arange(10, 0, -1) / 10
    np.testing.assert_allclose(np.sqrt(grid.noise[:-1]), 3 * sigma / (1 + 2 * sigma), rtol=2e-4)


@pytest.mark.parametrize(
    ("shift", "sigmas"),
    [
        (1.0, [1.0, 0.75025, 0.5005, 0.25075, 0.001]),
        (3.0, [1.0, 0.900359, 0.751121, 0.502985, 0.0089286]),
    ],
)
def test_flow_match_visits_the_levels_of_diffusers_scheduler(shift, sigmas):
    """FlowMatchEulerDiscreteScheduler(shift=shift) of diffusers 0.42.1, after set_timesteps(5)."""
    grid = grids.flow_match(make_process("straight", prediction="flow"), 5, shift=shift)
    np.testing.assert_allclose(np.sqrt(grid.noise[:-1]), sigmas, rtol=1e-3)
    np.testing.assert_allclose(np.array(grid.timesteps) + 1, 1000 * np.array(sigmas), rtol=1e-5)
    assert (grid.signal[-1], grid.noise[-1]) == (1.0, 0.0)


def test_lcm_visits_the_timesteps_that_published_models_know():
    """As diffusers 0.42.1's LCMScheduler does after set_timesteps."""
    assert grids.lcm(PROCESS, 4).timesteps == (999, 759, 499, 259)
    assert grids.lcm(PROCESS, 3).timesteps == (999, 679, 339)
    assert grids.lcm(PROCESS, 50).timesteps == tuple(range(999, 0, -20))
    with pytest.raises(UsageError, match=r"steps=51.*1\.\.50"):
        grids.lcm(PROCESS, 51)


def test_the_last_steps_of_a_grid_are_a_grid():
    grid = grids.exact(PROCESS, 50)
    last = grid.last(3)
    assert last.timesteps == grid.timesteps[-3:]
    assert last.signal[0] == PROCESS.signal[last.timesteps[0]]
    assert last.noise[0] == PROCESS.noise[last.timesteps[0]]
    assert grid.last(50) == grid
    for steps in (0, 51):
        with pytest.raises(UsageError, match=r"1\.\.50"):
            grid.last(steps)


@pytest.mark.parametrize("steps", [0, -1, 1001])
@pytest.mark.parametrize("name", grids.GRIDS.names())
def test_impossible_step_counts_are_refused(name, steps):
    with pytest.raises(UsageError, match=r"1\.\.1000"):
        grids.GRIDS.get(name)(PROCESS, steps)
