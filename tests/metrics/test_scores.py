import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from ldm_jax.base.errors import UsageError
from ldm_jax.metrics.scores import psnr, ssim


def images(b=2, h=24, w=33):
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(size=(b, h, w, 3)), (0, 3, 3, 0))
    return np.clip(smooth / np.abs(smooth).max(), -1, 1).astype(np.float32)


@pytest.mark.parametrize(("error", "decibels"), [(2.0, 0.0), (0.2, 20.0), (0.02, 40.0)])
def test_psnr_of_a_constant_error_is_known(error, decibels):
    a = jnp.zeros((2, 4, 4, 3))
    np.testing.assert_allclose(psnr(a, a + error), decibels, atol=1e-3)


def test_psnr_is_per_image():
    a = jnp.zeros((2, 4, 4, 3))
    b = a.at[1].add(0.2)
    assert psnr(a, b)[0] == pytest.approx(100.0)
    assert psnr(a, b)[1] == pytest.approx(20.0, abs=1e-3)


def test_ssim_equals_an_independent_one():
    """scipy's filter, whose 11 taps at truncate 3.5 are the paper's window, on 0..255."""
    a = images()
    b = np.clip(a + 0.1 * np.random.default_rng(1).normal(size=a.shape), -1, 1).astype(np.float32)

    def blur(x):
        blurred = gaussian_filter(x, (0, 1.5, 1.5, 0), truncate=3.5)
        return blurred[:, 5:-5, 5:-5]

    x, y = 127.5 * (a.astype(np.float64) + 1), 127.5 * (b.astype(np.float64) + 1)
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    cov = blur(x * y) - mean_x * mean_y
    c_1, c_2 = 6.5025, 58.5225
    score = (2 * mean_x * mean_y + c_1) * (2 * cov + c_2)
    score /= (mean_x**2 + mean_y**2 + c_1) * (var_x + var_y + c_2)
    np.testing.assert_allclose(ssim(a, b), score.mean((1, 2, 3)), atol=1e-4)


def test_ssim_is_one_of_itself_and_falls_with_noise():
    a = images()
    noise = np.random.default_rng(1).normal(size=a.shape).astype(np.float32)
    np.testing.assert_allclose(ssim(a, a), 1.0, atol=1e-6)
    slight, strong = ssim(a, a + 0.05 * noise), ssim(a, a + 0.5 * noise)
    assert np.all(strong < slight) and np.all(slight < 1)


def test_ssim_of_flat_images_is_the_luminance_term():
    x, y = 100.0, 150.0
    flat = [jnp.full((1, 16, 16, 3), v / 127.5 - 1) for v in (x, y)]
    expected = (2 * x * y + 6.5025) / (x * x + y * y + 6.5025)
    assert ssim(*flat)[0] == pytest.approx(expected, abs=1e-3)


def test_pairs_that_do_not_match_are_refused():
    a = images()
    with pytest.raises(UsageError, match="one shape"):
        psnr(a, a[:1])
    with pytest.raises(UsageError, match="11 px"):
        ssim(a[:, :8], a[:, :8])
