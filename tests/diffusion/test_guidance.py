import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.base.errors import UsageError
from ldm_jax.diffusion import guidance
from ldm_jax.diffusion.process import make_process

X = jnp.linspace(-1, 1, 24).reshape(2, 2, 2, 3)
T = jnp.array([3, 700])
COND = {"vector": jnp.array([[1.0], [2.0]]), "tokens": None}
NULL = {"vector": jnp.array([[-1.0], [0.5]]), "tokens": None}


def denoise(x, t, cond):
    return x * cond["vector"][:, :, None, None] + t[:, None, None, None] / 1000


def linear(scale, **options):
    """The linear rule as `guide` and `autoguide` take it."""
    return lambda strong, weak, t: guidance.extrapolate(strong, weak, scale, **options)


@pytest.mark.parametrize("scale", [0.0, 1.5, 7.5])
def test_guidance_extrapolates_from_the_null_in_one_call(scale):
    batches = []

    def counted(x, t, cond):
        batches.append(len(x))
        return denoise(x, t, cond)

    x_0 = guidance.guide(counted, COND, NULL, linear(scale))(X, T)
    null = denoise(X, T, NULL)
    np.testing.assert_allclose(x_0, null + scale * (denoise(X, T, COND) - null), atol=1e-6)
    assert batches == [4]


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_guiding_x0_is_guiding_the_networks_own_prediction(prediction):
    process = make_process(prediction=prediction)
    cond, null = jnp.sin(3 * X), jnp.cos(2 * X)
    on_prediction = process.to_x0(guidance.extrapolate(cond, null, 3.0), X, T)
    on_x0 = guidance.extrapolate(process.to_x0(cond, X, T), process.to_x0(null, X, T), 3.0)
    np.testing.assert_allclose(on_x0, on_prediction, rtol=1e-4, atol=1e-5)


def test_a_null_of_another_structure_is_refused():
    for null in (None, {"vector": NULL["vector"]}):
        with pytest.raises(UsageError, match="null condition"):
            guidance.guide(denoise, COND, null, linear(2.0))


def test_clipping_bounds_the_prediction():
    clipped = guidance.clip_x0(lambda x, t: 5 * x)
    assert np.abs(clipped(X, T)).max() == 1.0


def test_rescaling_gives_back_the_spread_of_the_unguided_prediction():
    strong, weak = jnp.sin(3 * X) + 0.2, jnp.cos(2 * X)
    guided = guidance.extrapolate(strong, weak, 5.0)
    assert np.all(guided.std((1, 2, 3)) > 2 * strong.std((1, 2, 3)))
    rescaled = guidance.extrapolate(strong, weak, 5.0, rescale=1.0)
    np.testing.assert_allclose(rescaled.std((1, 2, 3)), strong.std((1, 2, 3)), rtol=1e-5)
    halfway = guidance.extrapolate(strong, weak, 5.0, rescale=0.5)
    np.testing.assert_allclose(halfway, (guided + rescaled) / 2, rtol=1e-5, atol=1e-6)


def test_autoguidance_extrapolates_from_the_weaker_model():
    strong, weak = (lambda x, t: 2 * x), (lambda x, t: x + 1)
    guided = guidance.autoguide(strong, weak, linear(3.0))
    np.testing.assert_allclose(guided(X, T), (X + 1) + 3 * (2 * X - (X + 1)), atol=1e-6)


def autoguided(strong, weak):
    return lambda combine: guidance.autoguide(strong, weak, combine)


def doubled(strong, weak):
    return guidance.extrapolate(strong, weak, 2.0)


def test_guidance_within_an_interval_makes_no_other_calls():
    process, calls = make_process(), []

    def model(factor):
        def denoise(x, t):
            jax.debug.callback(lambda: calls.append(factor))
            return factor * x

        return denoise

    make, plain = autoguided(model(2.0), model(1.5)), model(2.0)
    limited = guidance.within(make, plain, doubled, process.noise_share, (0.3, 0.9))
    sigma = np.sqrt(process.noise)
    for t in (0, 50, 100, 500, 900, 999):
        inside = 0.3 <= sigma[t] <= 0.9
        calls.clear()
        x_0 = jax.jit(limited)(X, jnp.full(2, t))
        jax.effects_barrier()
        np.testing.assert_allclose(x_0, (2.5 if inside else 2.0) * X, atol=1e-6)
        assert sorted(calls) == ([1.5, 2.0] if inside else [2.0])


@pytest.mark.parametrize("t", [(0, 500), (500, 0), (0, 0), (500, 500)])
def test_every_row_is_guided_by_its_own_noise_level(t):
    process, t = make_process(), jnp.array(t)
    make = autoguided(lambda x, t: 2.0 * x, lambda x, t: 1.5 * x)
    limited = guidance.within(make, lambda x, t: 2.0 * x, doubled, process.noise_share, (0.3, 0.99))
    factors = jnp.where(t == 500, 2.5, 2.0)
    np.testing.assert_allclose(limited(X, t), factors[:, None, None, None] * X, rtol=1e-6)


def test_without_an_interval_guidance_never_computes_the_plain_prediction():
    guided = guidance.within(autoguided(lambda x, t: x, lambda x, t: 0 * x), None, doubled, None)
    np.testing.assert_array_equal(guided(X, T), 2 * X)


@pytest.mark.parametrize("interval", [(0.5, 0.2), (0.0, 2.0), (1,)])
def test_an_interval_that_means_nothing_is_refused(interval):
    with pytest.raises(UsageError, match="interval"):
        guidance.check(interval)
