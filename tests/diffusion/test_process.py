import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.base.errors import UsageError
from ldm_jax.diffusion import process as processes
from ldm_jax.diffusion import schedules

PREDICTIONS = processes.PREDICTIONS.names()
SCHEDULES = sorted(schedules.SCHEDULES.takers("beta_start"))
TIMES = jnp.array([0, 1, 10, 400, 700])


def arrays(*shape):
    keys = jax.random.split(jax.random.key(0))
    return [jax.random.normal(key, shape) for key in keys]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_perfect_prediction_gives_back_x0_and_eps(schedule, prediction):
    process = processes.make_process(schedule, 1000, prediction, beta_start=1e-4, beta_end=2e-2)
    x_0, eps = arrays(len(TIMES), 4, 4, 3)
    x_t = process.corrupt(x_0, TIMES, eps)
    back = process.to_x0(process.target(x_0, eps, TIMES), x_t, TIMES)
    tolerance = 3e-6 / process.alpha(TIMES)[:, None, None, None]
    assert np.all(np.abs(back - x_0) < tolerance)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_process_preserves_variance_and_only_adds_noise(schedule):
    process = processes.make_process(schedule, beta_start=1e-4, beta_end=2e-2)
    t = jnp.arange(1000)
    np.testing.assert_allclose(process.alpha(t) ** 2 + process.sigma(t) ** 2, 1.0, atol=3e-7)
    assert np.all(np.diff(process.signal) < 0)
    assert 0.9 < process.signal[0] < 1.0


@pytest.mark.parametrize(
    ("schedule", "prediction"), [("rectified", "v"), ("rectified", "flow"), ("straight", "flow")]
)
def test_a_perfect_prediction_of_a_flow_gives_back_x0_even_from_pure_noise(schedule, prediction):
    process = processes.make_process(schedule, prediction=prediction)
    t = jnp.append(TIMES, 999)
    x_0, eps = arrays(len(t), 4, 4, 3)
    x_t = process.corrupt(x_0, t, eps)
    np.testing.assert_allclose(x_t[-1], eps[-1], atol=1e-6)
    back = process.to_x0(process.target(x_0, eps, t), x_t, t)
    np.testing.assert_allclose(back, x_0, atol=3e-6)


def test_corrupted_unit_variance_stays_unit_variance():
    process = processes.make_process()
    x_0, eps = arrays(3, 64, 64, 3)
    x_t = process.corrupt(x_0, jnp.array([0, 500, 999]), eps)
    np.testing.assert_allclose(x_t.std((1, 2, 3)), 1.0, atol=0.03)


@pytest.mark.parametrize(
    ("beta_start", "beta_end", "terminal"),
    [(0.0015, 0.0195, 0.0119), (0.0015, 0.0155, 0.0259), (0.0015, 0.0205, 0.0098),
     (0.00085, 0.012, 0.0683)],
)  # fmt: skip
def test_official_schedules_end_at_their_known_signal(beta_start, beta_end, terminal):
    table = schedules.alpha_bar("scaled_linear", beta_start=beta_start, beta_end=beta_end)
    assert np.sqrt(table[-1]) == pytest.approx(terminal, abs=5e-5)
    assert table[0] == pytest.approx(1 - beta_start)


def test_schedules_follow_their_formulas():
    betas = 1e-4, 2e-2, 100
    np.testing.assert_allclose(np.diff(schedules.linear(*betas), 2), 0, atol=1e-15)
    roots = schedules.scaled_linear(*betas) ** 0.5
    np.testing.assert_allclose(np.diff(roots, 2), 0, atol=1e-15)
    np.testing.assert_allclose(np.diff(schedules.sqrt(*betas) ** 2, 2), 0, atol=1e-15)
    half = np.cos((0.5 + 8e-3) / (1 + 8e-3) * np.pi / 2) / np.cos(8e-3 / (1 + 8e-3) * np.pi / 2)
    assert schedules.alpha_bar("cosine")[499] == pytest.approx(half**2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_first_step(schedule):
    plain = schedules.alpha_bar(schedule)
    rescaled = schedules.alpha_bar(schedule, zero_terminal_snr=True)
    assert rescaled[-1] == 0.0
    assert rescaled[0] == pytest.approx(plain[0])
    process = processes.make_process(schedule, prediction="v", zero_terminal_snr=True)
    assert process.snr[-1] == 0.0
    x_0, eps = arrays(1, 4, 4, 3)
    t = jnp.array([999])
    v = process.target(x_0, eps, t)
    np.testing.assert_allclose(process.to_x0(v, process.corrupt(x_0, t, eps), t), x_0, atol=1e-6)


def test_eps_cannot_be_predicted_from_pure_noise():
    with pytest.raises(UsageError, match="use 'v'"):
        processes.make_process(prediction="eps", zero_terminal_snr=True)


@pytest.mark.parametrize(
    "bad",
    [{"schedule": "liner"}, {"prediction": "epsilon"}, {"timesteps": 0}, {"beta_end": 1.5},
     {"beta_start": 0.1}],
)  # fmt: skip
def test_bad_processes_are_refused_when_made(bad):
    with pytest.raises(UsageError):
        processes.make_process(**bad)


def test_a_process_is_a_value():
    assert processes.make_process() == processes.make_process()
    assert hash(processes.make_process()) == hash(processes.make_process())
    assert processes.make_process() != processes.make_process(prediction="v")


@pytest.mark.parametrize("kind", ["min_snr", "vlb"])
def test_a_weight_on_x0_is_the_same_loss_under_every_prediction(kind):
    """weight(pred) * |pred error|^2 must not depend on the prediction, for the same x_0 error."""
    x_0, eps = (np.asarray(x, np.float64) for x in arrays(len(TIMES) - 1, 4))
    t = TIMES[1:]  # the bound copies index 0 from 1 in its own terms
    losses = {}
    for prediction in PREDICTIONS:
        process = processes.make_process(prediction=prediction)
        x_t = process.corrupt(x_0, t, eps)
        wrong = x_0 + 0.1
        alpha, sigma = (c[:, None] for c in (process.alpha(t), process.sigma(t)))
        predicted = process.target(wrong, (x_t - alpha * wrong) / sigma, t)
        error = predicted - process.target(x_0, eps, t)
        losses[prediction] = process.weight(t, kind) * np.square(error).mean(1)
    np.testing.assert_allclose(losses["eps"], losses["x0"], rtol=1e-2)
    np.testing.assert_allclose(losses["v"], losses["x0"], rtol=1e-2)


def test_min_snr_weights_are_the_papers():
    t = jnp.arange(1000)
    snr = processes.make_process().snr
    for prediction, divisor in [("eps", snr), ("x0", 1.0), ("v", snr + 1)]:
        process = processes.make_process(prediction=prediction)
        np.testing.assert_allclose(
            process.weight(t, "min_snr", gamma=3.0), np.minimum(snr, 3.0) / divisor, rtol=1e-4
        )
        np.testing.assert_array_equal(process.weight(t, "uniform"), 1.0)


def test_the_posterior_agrees_with_bayes():
    """x_prev given x_t and x_0, from the joint Gaussian of (x_prev, x_t) at fixed x_0."""
    for signal, noise, signal_prev, noise_prev in [(0.3, 0.7, 0.7, 0.3), (0.9, 2.5, 1.1, 0.4)]:
        coef_x0, coef_xt, variance = processes.posterior(signal, noise, signal_prev, noise_prev)
        covariance = np.sqrt(signal / signal_prev) * noise_prev
        gain = covariance / noise
        np.testing.assert_allclose(coef_xt, gain)
        np.testing.assert_allclose(coef_x0, np.sqrt(signal_prev) - gain * np.sqrt(signal))
        np.testing.assert_allclose(variance, noise_prev - gain * covariance)
