"""Nothing but the schedules that come from betas takes the variance to be preserved.

Rectified flow and a process whose variance explodes are registered here, as a user's module would,
and go through the whole second stage with the network that is best for known Gaussian data.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.base.errors import UsageError
from ldm_jax.diffusion import guidance, process, schedules
from ldm_jax.models.conditioners import Cond
from ldm_jax.stages.codec import Codec
from ldm_jax.stages.diffuse import Diffuse, Loss
from ldm_jax.stages.sampling import Sampling

MEAN, DEVIATION, SIZE = 0.7, 0.5, 8
FROZEN = {"first_stage": {}, "scale": 1.0}


def rectified(timesteps, *, first=1):
    """x_t = (1 - s) x_0 + s eps (Liu et al. 2022, arXiv 2209.03003), s up to 1."""
    s = np.arange(first, timesteps + first) / (timesteps + first - 1)
    return (1 - s) ** 2, s**2


def exploding(timesteps):
    """x_t = x_0 + sigma eps."""
    return np.ones(timesteps), np.geomspace(0.01, 20, timesteps) ** 2


def logit_normal(key, shape, timesteps, *, mean=0.0):
    """s = sigmoid(n) with n ~ N(mean, 1) (Esser et al. 2024, arXiv 2403.03206, sec. 3.1)."""
    s = jax.nn.sigmoid(mean + jax.random.normal(key, shape))
    return jnp.clip(s * timesteps, 0, timesteps - 1).astype(jnp.int32)


velocity = process.Prediction(
    target=lambda x_0, eps, alpha, sigma: eps - x_0,
    to_x0=lambda v, x_t, alpha, sigma: (x_t - sigma * v) / (alpha + sigma),
    gain=lambda alpha, sigma: (sigma / (alpha + sigma)) ** 2,
)


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        for registry, name, entry in [
            (schedules.SCHEDULES, "rectified", rectified),
            (schedules.SCHEDULES, "exploding", exploding),
            (process.PREDICTIONS, "velocity", velocity),
            (process.DENSITIES, "logit_normal", logit_normal),
            (guidance.GUIDANCES, "louder", lambda strong, weak, scale: scale * strong),
        ]:
            patch.setitem(registry._entries, name, entry)
        yield


class Best:
    """The network that knows the data: N(MEAN, DEVIATION^2) at every pixel."""

    fields, latent_of = (), {}

    def __init__(self, process):
        self.process = process

    def draw_drop(self, key, b, dropout):
        return jnp.zeros(b, bool)

    def apply(self, variables, x, t, *args, method=None, **options):
        if method == "condition":
            return Cond()
        alpha, sigma = (
            c.reshape(-1, 1, 1, 1) for c in (self.process.alpha(t), self.process.sigma(t))
        )
        gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
        x_0 = MEAN + gain * (x - alpha * MEAN)
        return self.process.target(x_0, (x - alpha * x_0) / sigma, t)


def stage(*, weight="uniform", **settings):
    made = process.make_process(**settings)
    return Diffuse(Best(made), made, Codec(None), SIZE, Loss("l2", weight, 0.0))


def flow(**settings):
    return stage(schedule="rectified", prediction="velocity", **settings)


@pytest.mark.parametrize(("density", "options"), [("uniform", {}), ("logit_normal", {"mean": 1.0})])
def test_the_loss_of_rectified_flow_is_what_no_network_can_beat(density, options):
    """E |v - E[v | x_t]|^2 = Var[x_0 | x_t] / s^2 = d^2 / ((1 - s)^2 d^2 + s^2)."""
    model = flow(density=density, **options)
    key = jax.random.key(0)
    images = MEAN + DEVIATION * jax.random.normal(key, (2048, SIZE, SIZE, 3))
    loss, _ = model.denoiser_loss({"denoiser": {}}, FROZEN, {"image": images}, key, 0, {})
    times = logit_normal(key, (100_000,), 1000, **options) if options else np.arange(1000)
    s = (np.asarray(times) + 1) / 1000
    want = DEVIATION**2 / ((1 - s) ** 2 * DEVIATION**2 + s**2)
    assert float(loss) == pytest.approx(want.mean(), rel=0.02)


def test_a_time_density_decides_which_timesteps_are_trained():
    key = jax.random.key(1)
    draw = lambda **settings: np.asarray(flow(**settings).process.draw_times(key, (20_000,)))
    np.testing.assert_array_equal(draw(), jax.random.randint(key, (20_000,), 0, 1000))
    assert np.median(draw(density="logit_normal")) == pytest.approx(500, abs=15)
    assert np.median(draw(density="logit_normal", mean=1.0)) == pytest.approx(731, abs=15)
    with pytest.raises(UsageError, match=r"mean=1.0 does nothing with time density 'uniform'"):
        flow(mean=1.0)


@pytest.mark.parametrize("weight", ["min_snr", "vlb"])
def test_weights_are_those_of_x0_by_the_predictions_gain(weight):
    made = flow().process
    t = np.arange(1, 1000)
    as_x0 = dataclasses.replace(made, prediction="x0").weight(t, weight)
    s = (t + 1) / 1000
    np.testing.assert_allclose(made.weight(t, weight), as_x0 * s**2, rtol=1e-4)


@pytest.mark.parametrize(
    ("schedule", "prediction", "tolerance"),
    [("rectified", "velocity", 0.02), ("rectified", "x0", 0.02), ("exploding", "eps", 0.06)],
)
@pytest.mark.parametrize(
    "how", [dict(sampler="ddim", steps=250), dict(sampler="heun", steps=40),
            dict(sampler="unipc", steps=80, spacing="karras", rho=5.0)], ids=str
)  # fmt: skip
def test_samplers_take_noise_to_the_data(how, schedule, prediction, tolerance):
    """Between Gaussians the probability flow is affine: x_0 = MEAN + DEVIATION * noise."""
    model, keys = (
        stage(schedule=schedule, prediction=prediction),
        jax.random.split(jax.random.key(2), 2),
    )
    noise = jax.random.normal(jax.random.key(3), (2, SIZE, SIZE, 3))
    size = dict(height=SIZE, width=SIZE, noise=noise)
    x_0 = model.sample({}, FROZEN, keys, sampling=Sampling(**how), **size)
    np.testing.assert_allclose(x_0, MEAN + DEVIATION * noise, atol=tolerance)


def test_any_rule_guides_and_an_interval_is_of_the_noises_share():
    model, x = stage(schedule="exploding"), jnp.ones((3, SIZE, SIZE, 3))
    t = jnp.array([0, 500, 999])
    how = Sampling(guidance=3.0, rule="louder", interval=(0.0, 0.99))
    plain = model.guided({}, FROZEN, Cond(), Cond(), Sampling())(x, t)
    for frozen in (FROZEN, FROZEN | {"guide": {}}):
        guided = model.guided({}, frozen, Cond(), Cond(), how)(x, t)
        np.testing.assert_allclose(guided[:2], 3 * plain[:2], rtol=1e-6)
        np.testing.assert_allclose(guided[2], plain[2], rtol=1e-6)


def test_what_a_prediction_or_a_schedule_cannot_do_is_refused():
    with pytest.raises(UsageError, match="schedule='rectified', first=2: its formulas need"):
        process.make_process(schedule="rectified", prediction="v", first=2)
    with pytest.raises(UsageError, match="schedule='rectified': the last x_t is pure noise"):
        process.make_process(schedule="rectified")
    with pytest.raises(UsageError, match=r"beta_end=0.5 does nothing with schedule 'rectified'"):
        process.make_process(schedule="rectified", prediction="velocity", beta_end=0.5)
    with pytest.raises(UsageError, match="no schedule and no time density takes it"):
        process.make_process(beta_ned=0.5)
