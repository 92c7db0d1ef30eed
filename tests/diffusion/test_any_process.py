"""Nothing but the schedules that come from betas takes the variance to be preserved.

Rectified flow, and a process whose variance explodes, which is registered here as a user's module
would, go through the whole second stage with the network that is best for known Gaussian data.
"""

import dataclasses
import itertools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.base.errors import UsageError
from ldm_jax.diffusion import guidance, process, samplers, schedules
from ldm_jax.models.backbones import Backbone
from ldm_jax.models.conditioners import Cond
from ldm_jax.stages.codec import Codec
from ldm_jax.stages.diffuse import Diffuse, Loss
from ldm_jax.stages.sampling import Sampling

MEAN, DEVIATION, SIZE = 0.7, 0.5, 8
FROZEN = {"first_stage": {}, "scale": 1.0}


def exploding(timesteps):
    """x_t = x_0 + sigma eps."""
    return np.ones(timesteps), np.geomspace(0.01, 20, timesteps) ** 2


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        for registry, name, entry in [
            (schedules.SCHEDULES, "exploding", exploding),
            (guidance.GUIDANCES, "louder", lambda strong, weak, scale: scale * strong),
        ]:
            patch.setitem(registry._entries, name, entry)
        yield


class Best:
    """The network that knows the data: N(MEAN, DEVIATION^2) at every pixel."""

    fields, told, latent_of = (), (), {}
    backbone = Backbone  # of which its divisor is asked, 1

    def __init__(self, process):
        self.process = process

    def draw_drop(self, key, b, dropout):
        return jnp.zeros(b, bool)

    def draw_told(self, key, b):
        return {}

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
    return stage(**(dict(schedule="straight", prediction="flow") | settings))


DENSITIES = [dict(density="uniform"), dict(density="logit_normal", density_mean=1.0)]
DENSITIES += [dict(density="shifted", density_shift=3.0)]


def times(u, density, density_mean=0.0, density_shift=1.0):
    """Flow times in 0..1 of uniform ones, by the density's distribution function."""
    if density == "logit_normal":
        return 1 / (1 + np.exp(-statistics.NormalDist(density_mean, 1.0).inv_cdf(u)))
    return density_shift * u / (1 + (density_shift - 1) * u)


@pytest.mark.parametrize("density", DENSITIES, ids=str)
def test_the_loss_of_rectified_flow_is_what_no_network_can_beat(density):
    """E |v - E[v | x_t]|^2 = Var[x_0 | x_t] / s^2 = d^2 / ((1 - s)^2 d^2 + s^2)."""
    model = flow(**density)
    key = jax.random.key(0)
    images = MEAN + DEVIATION * jax.random.normal(key, (2048, SIZE, SIZE, 3))
    loss, _ = model.denoiser_loss({"denoiser": {}}, FROZEN, {"image": images}, key, 0, {})
    s = np.array([times(u, **density) for u in (np.arange(2000) + 0.5) / 2000])
    want = DEVIATION**2 / ((1 - s) ** 2 * DEVIATION**2 + s**2)
    assert float(loss) == pytest.approx(want.mean(), rel=0.02)


@pytest.mark.parametrize("density", DENSITIES, ids=str)
@pytest.mark.parametrize("schedule", ["straight", "rectified"])
def test_a_time_density_decides_which_timesteps_are_trained(density, schedule):
    made, key = flow(**density, schedule=schedule).process, jax.random.key(1)
    drawn = np.asarray(jax.jit(made.draw_times, static_argnums=1)(key, (20_000,)))
    for share in (0.1, 0.5, 0.9):
        s = times(share, **density)
        assert np.mean(drawn < 1000 * s) == pytest.approx(share, abs=0.015)


def test_uniform_times_are_drawn_as_ever():
    key = jax.random.key(1)
    want = jax.random.randint(key, (100,), 0, 1000)
    np.testing.assert_array_equal(flow().process.draw_times(key, (100,)), want)


def test_edms_noise_is_a_density_of_any_schedule():
    made = process.make_process(density="logit_normal", density_mean=0.18, density_std=1.2)
    level = -0.5 * np.log(made.snr)
    inside = statistics.NormalDist(0.18, 1.2).cdf
    for t in (200, 500, 800):
        share = inside(level[t]) - inside(level[0])
        assert made.shares[: t + 1].sum() == pytest.approx(
            share / (inside(level[-1]) - inside(level[0])), abs=0.005
        )


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (dict(density_mean=1.0), "density_mean=1.0 does nothing with time density 'uniform'"),
        (dict(density="shifted", density_shift=0.0), "density_shift=0.0 must be above 0"),
        (dict(density="logit_normal", density_std=-1.0), "density_std=-1.0 must be above 0"),
        (dict(schedule="scaled_linear", density="logit_normal", density_mean=6.0),
         r"only 6% of it lies within the noise levels of schedule='scaled_linear', where "
         r"log\(sigma / alpha\) is -3.25 to 4.43"),
    ],
)  # fmt: skip
def test_a_density_that_does_not_fit_is_refused(settings, line):
    with pytest.raises(UsageError, match=line):
        flow(**settings)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("kind", ["v", "flow"])
def test_a_weight_makes_one_predictions_error_anothers(prediction, kind):
    """Two guesses of x_0 differ by one error; seen through any prediction it weighs the same."""
    made = process.make_process(prediction=prediction, timesteps=50)
    own, its = made._predicted, process.PREDICTIONS.get(kind)
    alpha, sigma = made.tables
    x_t, error = 0.3, lambda p: (p.to_x0(1.0, x_t, alpha, sigma) - p.to_x0(0.0, x_t, alpha, sigma))
    want = (error(own) / error(its)) ** 2
    np.testing.assert_allclose(made.weight(np.arange(50), kind, cap=1e9), want, rtol=1e-5)
    np.testing.assert_allclose(
        made.weight(np.arange(50), kind, cap=2.0), want.clip(max=2), rtol=1e-5
    )


def test_eulers_steps_along_the_velocity_are_ddims():
    """At any network, on the published process and on the one of variance 1."""
    network = lambda x, u: jnp.sin(3 * x) + u  # of the straight process's x and time
    x = jax.random.normal(jax.random.key(4), (2, SIZE, SIZE, 3))
    made = process.make_process(schedule="straight", prediction="flow")
    u = [*((np.array(Sampling(steps=7).grid(made).timesteps) + 1) / 1000), 0.0]
    want = x
    for now, then in itertools.pairwise(u):
        want = want + (then - now) * network(want, now)

    for schedule, prediction in (("straight", "flow"), ("rectified", "flow"), ("rectified", "v")):
        own = process.make_process(schedule=schedule, prediction=prediction)

        def denoise(x, t, own=own):
            now = (t.reshape(-1, 1, 1, 1) + 1) / 1000
            radius = 1.0 if own.schedule == "straight" else jnp.sqrt((1 - now) ** 2 + now**2)
            x_0 = radius * x - now * network(radius * x, now)
            eps = (x - own.alpha(t).reshape(now.shape) * x_0) / own.sigma(t).reshape(now.shape)
            return own.to_x0(own.target(x_0, eps, t), x, t)

        for sampler in ("ddim", "euler"):
            method = Sampling(sampler=sampler, steps=7).method(own)
            keys = jax.random.split(jax.random.key(0), 2)
            np.testing.assert_allclose(
                samplers.solve(method, denoise, x, keys=keys), want, atol=2e-5
            )


@pytest.mark.parametrize("weight", ["min_snr", "vlb"])
def test_weights_are_those_of_x0_by_the_predictions_gain(weight):
    made = flow().process
    t = np.arange(1, 1000)
    as_x0 = dataclasses.replace(made, prediction="x0").weight(t, weight)
    s = (t + 1) / 1000
    np.testing.assert_allclose(made.weight(t, weight), as_x0 * s**2, rtol=1e-4)


DDIM, HEUN = dict(sampler="ddim", steps=250), dict(sampler="heun", steps=40)
UNIPC = dict(sampler="unipc", steps=80, spacing="karras", rho=5.0)
SHIFTED = dict(sampler="dpmpp_2m", steps=120, spacing="shifted", shift=1.5)
PATHS = [
    ("straight", "flow", 0.02, (DDIM, HEUN, UNIPC, SHIFTED)),
    ("straight", "x0", 0.02, (HEUN,)),
]
PATHS += [("rectified", "v", 0.02, (DDIM, UNIPC)), ("exploding", "eps", 0.06, (DDIM, HEUN, UNIPC))]


@pytest.mark.parametrize(
    ("schedule", "prediction", "tolerance", "how"),
    [(*path, how) for *path, ways in PATHS for how in ways],
)
def test_samplers_take_noise_to_the_data(schedule, prediction, tolerance, how):
    """Between Gaussians the probability flow is affine: x_0 = MEAN + DEVIATION * noise."""
    model = stage(schedule=schedule, prediction=prediction)
    keys = jax.random.split(jax.random.key(2), 2)
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
    with pytest.raises(UsageError, match="schedule='straight': its formulas need"):
        process.make_process(schedule="straight", prediction="v")
    with pytest.raises(UsageError, match="schedule='rectified': the last x_t is pure noise"):
        process.make_process(schedule="rectified")
    with pytest.raises(UsageError, match=r"beta_end=0.5 does nothing with schedule 'rectified'"):
        process.make_process(schedule="rectified", prediction="flow", beta_end=0.5)
    with pytest.raises(UsageError, match="no schedule and no time density takes it"):
        process.make_process(beta_ned=0.5)
