import functools
import types

import numpy as np
import pytest
import scipy.linalg

from ldm_jax.base.errors import UsageError
from ldm_jax.metrics.frechet import Moments, frechet_distance


def features(n, d, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def test_it_equals_the_formula_with_a_matrix_square_root():
    a, b = features(400, 24, 0), features(300, 24, 1)
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    delta = a.mean(0) - b.mean(0)
    expected = delta @ delta + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(expected, rel=1e-9)


def test_it_has_the_closed_form_for_diagonal_gaussians():
    mean_a, mean_b = np.array([1.0, -2.0, 0.5]), np.array([0.0, 1.0, 0.5])
    std_a, std_b = np.array([1.0, 2.0, 0.1]), np.array([3.0, 1.0, 0.0])
    expected = np.sum((mean_a - mean_b) ** 2) + np.sum((std_a - std_b) ** 2)
    a = types.SimpleNamespace(mean=mean_a, covariance=np.diag(std_a**2))
    b = types.SimpleNamespace(mean=mean_b, covariance=np.diag(std_b**2))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_it_is_zero_of_itself_and_symmetric_even_with_fewer_images_than_features():
    a, b = Moments.of(features(20, 64, 0)), Moments.of(features(30, 64, 1))
    assert abs(frechet_distance(a, a)) < 1e-9 * np.trace(a.covariance)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


@pytest.mark.parametrize("splits", [(1,), (100, 101), (3, 50, 51, 200)])
def test_moments_do_not_depend_on_how_the_stream_is_cut(splits):
    x = features(257, 8, 2) + 1e3  # a large mean is where the sum of squares would cancel
    stream = functools.reduce(Moments.merge, map(Moments.of, np.split(x, splits)))
    assert stream.count == 257
    np.testing.assert_allclose(stream.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(stream.covariance, np.cov(x.T), rtol=1e-9)


def test_merging_is_the_moments_of_the_union():
    x, y = features(40, 5, 0), features(7, 5, 1)
    merged, whole = Moments.of(x).merge(Moments.of(y)), Moments.of(np.concatenate([x, y]))
    np.testing.assert_allclose(merged.scatter, whole.scatter, rtol=1e-10)


def test_what_has_no_distance_is_refused():
    with pytest.raises(UsageError, match="2 features"):
        frechet_distance(Moments.of(np.ones((1, 3))), Moments.of(np.ones((5, 3))))
    with pytest.raises(UsageError, match="NaN"):
        Moments.of(np.array([[1.0, np.nan]]))
    with pytest.raises(UsageError, match="widths"):
        frechet_distance(Moments.of(features(9, 3, 0)), Moments.of(features(9, 4, 0)))
