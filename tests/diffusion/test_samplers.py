import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import given_noise

from ldm_jax.base.errors import UsageError
from ldm_jax.diffusion import grids, samplers
from ldm_jax.diffusion.process import make_process

PROCESS = make_process()
TEN = grids.exact(PROCESS, 10)
MEAN, DEVIATION = 0.7, 0.5
SHAPE = (4, 4, 3)
DRAWING = ("ddpm", "euler_ancestral", "dpmpp_2m_sde", "consistency")
DISTINCT = [name for name in samplers.SAMPLERS.names() if not name.startswith("euler")]
KEYS = jax.random.split(jax.random.key(1), 3)
NOISE = np.random.default_rng(0).normal(size=(1000, 3, *SHAPE)).astype(np.float32)
X_T = np.random.default_rng(1).normal(size=(3, *SHAPE)).astype(np.float32)


def gaussian_denoiser(process):
    """E[x_0 | x_t] for data N(MEAN, DEVIATION^2): the best possible denoiser, in closed form."""

    def denoise(x, t):
        alpha, sigma = (c.reshape(-1, 1, 1, 1) for c in (process.alpha(t), process.sigma(t)))
        gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
        return MEAN + gain * (x - alpha * MEAN)

    return denoise


def sample(name, x_T=X_T, grid=TEN, process=PROCESS, eta=0.0, **options):
    given = {"eta": eta} if name == "ddim" else {}
    method = samplers.SAMPLERS.call(name, grid, **given)
    return given_noise.solve(method, gaussian_denoiser(process), x_T, **options)


@pytest.mark.parametrize(
    ("name", "eta", "zero_terminal_snr"),
    [("ddim", 0.0, False), ("ddim", 0.5, False), ("ddim", 1.0, False), ("ddpm", 1.0, False),
     ("ddim", 0.0, True), ("ddpm", 1.0, True), ("dpmpp_2m_sde", 0.0, False),
     ("dpmpp_2m_sde", 0.0, True)],
)  # fmt: skip
def test_the_exact_denoiser_of_gaussian_data_gives_back_that_gaussian(name, eta, zero_terminal_snr):
    """On the full grid: the ancestral variance (beta-tilde) is too small by O(1 / steps)."""
    process = make_process(prediction="v", zero_terminal_snr=zero_terminal_snr)
    rng = np.random.default_rng(2)
    x_T, *noise = rng.normal(size=(1001, 2, 16, 128, 3)).astype(np.float32)
    images = sample(name, x_T, grids.exact(process, 1000), process, eta=eta, noise=np.stack(noise))
    assert images.mean() == pytest.approx(MEAN, abs=0.015)
    assert images.std() == pytest.approx(DEVIATION, abs=0.015)


def test_ddim_maps_each_noise_to_its_own_image():
    """The probability flow between Gaussians is affine: x_0 = MEAN + DEVIATION * x_T (nearly)."""
    x_0 = sample("ddim", grid=grids.exact(PROCESS, 500))
    np.testing.assert_allclose(x_0, MEAN + DEVIATION * X_T, atol=0.03)


@pytest.mark.parametrize(
    ("name", "eta"), [*((name, 0.0) for name in samplers.SAMPLERS.names()), ("ddim", 1.0)]
)
def test_an_image_does_not_depend_on_the_batch_it_is_sampled_in(name, eta):
    together = sample(name, keys=KEYS, eta=eta)
    alone = sample(name, X_T[1:2], keys=KEYS[1:2], eta=eta)
    np.testing.assert_allclose(together[1:2], alone, rtol=0, atol=1e-6)


def test_noise_is_bit_equal_whatever_the_batch_and_differs_between_images_and_steps():
    draws = []
    for draw in (
        lambda keys: samplers.initial_noise(keys, SHAPE),
        lambda keys: samplers.step_noise(keys, 0, SHAPE),
        lambda keys: samplers.step_noise(keys, 1, SHAPE),
    ):
        np.testing.assert_array_equal(draw(KEYS)[1:2], draw(KEYS[1:2]))
        draws += [*draw(KEYS)]
    assert len({float(draw[0, 0, 0]) for draw in draws}) == len(draws)


def test_ddim_without_eta_repeats_itself_and_only_noise_needs_keys():
    np.testing.assert_array_equal(sample("ddim"), sample("ddim"))
    with pytest.raises(UsageError, match="keys"):
        sample("ddim", eta=0.1)


@pytest.mark.parametrize("spacing", ["exact", "legacy"])
def test_ancestral_sampling_is_ddim_with_eta_one(spacing):
    grid = grids.GRIDS.get(spacing)(PROCESS, 20)
    as_ddim = sample("ddim", grid=grid, eta=1.0, noise=NOISE[:20])
    for name in ("ddpm", "euler_ancestral"):
        ancestral = sample(name, grid=grid, noise=NOISE[:20])
        np.testing.assert_allclose(ancestral, as_ddim, atol=1e-5)


def test_euler_is_ddim_without_noise_and_with_it_ddpm():
    for same, as_this in [("euler", "ddim"), ("euler_ancestral", "ddpm")]:
        tables = [samplers.SAMPLERS.call(name, TEN).tables for name in (same, as_this)]
        np.testing.assert_array_equal(*tables)


def test_euler_ancestral_is_eulers_step_to_s_down_and_noise_up_to_s_next():
    """The form that others write, in y = x / alpha and s = sigma / alpha."""
    table = np.asarray(TEN.signal)
    s = np.sqrt((1 - table) / table)
    denoise, x = gaussian_denoiser(PROCESS), X_T
    for i, t in enumerate(TEN.timesteps):
        x_0 = denoise(x, jnp.full(3, t))
        y = x / np.sqrt(table[i])
        up = np.sqrt(s[i + 1] ** 2 * (s[i] ** 2 - s[i + 1] ** 2) / s[i] ** 2)
        down = np.sqrt(s[i + 1] ** 2 - up**2)
        y = y + (down - s[i]) * (y - x_0) / s[i] + up * NOISE[i]
        x = np.sqrt(table[i + 1]) * y
    np.testing.assert_allclose(sample("euler_ancestral", noise=NOISE[:10]), x, atol=1e-4)


@pytest.mark.parametrize("name", samplers.SAMPLERS.names())
def test_the_last_step_of_a_clean_grid_is_the_prediction_itself(name):
    calls = len(samplers.SAMPLERS.call(name, TEN))
    x_0, trace = sample(name, eta=1.0, noise=NOISE[:calls], trace=True)
    assert trace["x"].shape == trace["x_0"].shape == (calls, 3, *SHAPE)
    np.testing.assert_array_equal(trace["x"][-1], x_0)
    np.testing.assert_allclose(trace["x_0"][-1], x_0, atol=1e-6)


@pytest.mark.parametrize("name", samplers.SAMPLERS.names())
def test_a_sampler_calls_the_network_as_often_as_it_says(name):
    seen = []
    denoise = gaussian_denoiser(PROCESS)

    def counting(x, t):
        jax.debug.callback(lambda t: seen.append(float(t[0])), t, ordered=True)
        return denoise(x, t)

    method = samplers.SAMPLERS.call(name, TEN)
    jax.block_until_ready(samplers.solve(method, counting, X_T, keys=KEYS))
    jax.effects_barrier()
    assert len(seen) == len(method) == {"heun": 19, "plms": 11}.get(name, 10)
    assert seen == [float(t) for t in method.timesteps]
    assert sorted(set(seen), reverse=True) == [float(t) for t in TEN.timesteps]


PROCESSES = {
    "plain": PROCESS,
    "zero_terminal_snr": make_process(prediction="v", zero_terminal_snr=True),
}


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("name", DISTINCT)
def test_any_step_count_stays_finite_and_many_steps_find_the_data(name, process):
    """The network is the Gaussian's exact prediction, through the process's own conversions."""
    best = gaussian_denoiser(process)

    def denoise(x, t):
        x_0 = best(x, t)
        alpha, sigma = (c.reshape(-1, 1, 1, 1) for c in (process.alpha(t), process.sigma(t)))
        pred = process.target(x_0, (x - alpha * x_0) / sigma, t)
        return process.to_x0(pred, x, t)

    for steps in (1, 2, 3, 27, 300, 999, 1000):
        method = samplers.SAMPLERS.call(name, grids.exact(process, steps))
        x_0 = samplers.solve(method, denoise, X_T[..., :1], keys=KEYS)
        assert np.isfinite(x_0).all(), steps
        if steps >= 300 and name not in DRAWING:
            np.testing.assert_allclose(x_0, MEAN + DEVIATION * X_T[..., :1], atol=0.04)


@pytest.mark.parametrize("spacing", grids.GRIDS.names())
@pytest.mark.parametrize("name", DISTINCT)
def test_every_sampler_takes_every_grid(name, spacing):
    for process in (PROCESS, PROCESSES["zero_terminal_snr"]):
        grid = grids.GRIDS.get(spacing)(process, 25)
        x_0 = sample(name, grid=grid, process=process, keys=KEYS)
        assert np.isfinite(x_0).all()
        if name not in DRAWING and spacing != "leading":  # which takes its start for another level
            error = x_0 - (MEAN + DEVIATION * X_T)
            assert np.sqrt(np.mean(error**2)) < 0.12
