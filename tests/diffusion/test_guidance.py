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


def test_scale_one_is_the_conditional_model_and_needs_no_null():
    guided = guidance.guide(denoise, COND, None, 1.0)
    np.testing.assert_array_equal(guided(X, T), denoise(X, T, COND))


@pytest.mark.parametrize("scale", [0.0, 1.5, 7.5])
def test_guidance_extrapolates_from_the_null_in_one_call(scale):
    batches = []

    def counted(x, t, cond):
        batches.append(len(x))
        return denoise(x, t, cond)

    x_0 = guidance.guide(counted, COND, NULL, scale)(X, T)
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
            guidance.guide(denoise, COND, null, 2.0)


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
    guided = guidance.autoguide(strong, weak, 3.0)
    np.testing.assert_allclose(guided(X, T), (X + 1) + 3 * (2 * X - (X + 1)), atol=1e-6)


def test_guidance_within_an_interval_makes_no_other_calls():
    process, calls = make_process(), []

    def model(factor):
        def denoise(x, t):
            jax.debug.callback(lambda: calls.append(factor))
            return factor * x

        return denoise

    limited = guidance.within(model(2.0), model(1.0), process.sigma, (0.3, 0.9))
    sigma = np.sqrt(1 - process.alpha_bar)
    for t in (0, 50, 100, 500, 900, 999):
        expected = 2.0 if 0.3 <= sigma[t] <= 0.9 else 1.0
        calls.clear()
        x_0 = jax.jit(limited)(X, jnp.full(2, t))
        jax.effects_barrier()
        np.testing.assert_allclose(x_0, expected * X, atol=1e-6)
        assert calls == [expected]


def test_the_whole_interval_is_guidance_itself():
    def guided(x, t):
        return x

    assert guidance.within(guided, None, None) is guided


@pytest.mark.parametrize(
    ("rescale", "interval"), [(1.5, (0.0, 1.0)), (0.0, (0.5, 0.2)), (0.0, (0.0, 2.0)), (0.0, (1,))]
)
def test_settings_that_mean_nothing_are_refused(rescale, interval):
    with pytest.raises(UsageError, match=r"rescale|interval"):
        guidance.check(rescale, interval)
