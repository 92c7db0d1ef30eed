"""The figures against torch-fidelity, pytorch-fid and prdc on the same features, and their laws."""

import json
import pathlib
import types

import make_metrics_golden as golden
import numpy as np
import pytest

from ldm_jax.base.errors import UsageError
from ldm_jax.metrics import (
    clip_score,
    frechet,
    inception_score,
    kernel,
    latents,
    manifold,
    resampling,
)
from ldm_jax.metrics.frechet import Moments

EXPECTED = json.loads(
    (pathlib.Path(golden.__file__).parent / "golden" / "metrics" / "figures.json").read_text()
)
close = lambda value: pytest.approx(value, rel=1e-6)


@pytest.fixture(params=golden.CASES)
def case(request):
    """(fake, real, what the others computed)."""
    return *golden.features(request.param), EXPECTED[request.param]


def test_the_frechet_distance_is_torch_fidelitys_and_pytorch_fids(case):
    fake, real, expected = case
    value = frechet.frechet_distance(Moments.of(fake), Moments.of(real))
    assert value == close(expected["fd"]["frechet_inception_distance"])
    assert value == close(expected["fd_pytorch_fid"])


def test_the_kernel_distance_is_torch_fidelitys(case):
    fake, real, expected = case
    mean, std = kernel.kernel_distance(fake, real, **golden.KID)
    assert mean == close(expected["kid"]["kernel_inception_distance_mean"])
    assert std == close(expected["kid"]["kernel_inception_distance_std"])


def test_precision_and_recall_are_torch_fidelitys(case):
    fake, real, expected = case
    precision, recall = manifold.precision_recall(fake, real)
    assert precision == close(expected["prc"]["precision"])
    assert recall == close(expected["prc"]["recall"])


def test_density_and_coverage_are_prdcs(case, monkeypatch):
    fake, real, expected = case
    monkeypatch.setattr(manifold, "BLOCK", 37)  # several blocks, the last one short
    density, coverage = manifold.density_coverage(fake, real)
    assert density == close(expected["prdc"]["density"])
    assert coverage == close(expected["prdc"]["coverage"])


def test_the_inception_score_is_torch_fidelitys():
    score, std = inception_score.inception_score(golden.logits(), golden.SPLITS)
    assert score == close(EXPECTED["inception_score"]["inception_score_mean"])
    assert std == close(EXPECTED["inception_score"]["inception_score_std"])


def test_the_inception_score_is_the_number_of_classes_at_best_and_one_at_worst():
    sure = 1e3 * np.eye(10)[np.arange(1000) % 10]
    score, _ = inception_score.inception_score(sure, splits=1)
    assert score == pytest.approx(10.0, rel=1e-6)
    assert inception_score.inception_score(np.zeros((100, 10)))[0] == pytest.approx(1.0)


def test_the_kernel_distance_of_one_distribution_is_about_zero_on_both_sides():
    rng = np.random.RandomState(0)
    draws = [
        kernel.squared_mmd(rng.normal(size=(50, 8)), rng.normal(size=(50, 8))) for _ in "x" * 40
    ]
    assert min(draws) < 0 < max(draws)
    assert abs(np.mean(draws)) < 3 * np.std(draws) / np.sqrt(len(draws))


def test_cmmd_is_that_of_its_formula_in_torch(monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK", 37)
    with np.load(pathlib.Path(golden.__file__).parent / "golden/metrics/transformers.npz") as file:
        expected = float(file["cmmd"])
    fake, real = golden.unit_vectors()
    assert kernel.cmmd(fake, real)[0] == close(expected)
    assert kernel.cmmd(real, real)[0] == pytest.approx(0.0, abs=1e-9)


def test_the_error_of_cmmd_is_the_spread_over_fresh_samples():
    rng = np.random.RandomState(4)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    real = unit(rng.normal(size=(200, 6)))
    fresh = lambda: kernel.cmmd(unit(rng.normal(size=(150, 6)) + 0.7), real)
    values, errors = zip(*(fresh() for _ in range(100)))
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.25)


def test_the_clip_score_weighs_cosines_and_leaves_out_negative_ones():
    images = np.array([[1.0, 0.0], [0.6, 0.8], [1.0, 0.0]])
    texts = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    score, error = clip_score.clip_score(images, texts)
    assert score == pytest.approx(2.5 * (1.0 + 0.6 + 0.0) / 3)
    assert error == pytest.approx(2.5 * np.std([1.0, 0.6, 0.0], ddof=1) / np.sqrt(3))


def test_neighbourhoods_tell_lost_modes_from_wrong_samples():
    rng = np.random.RandomState(0)
    cluster = lambda n, at: rng.normal(size=(n, 4)) + at
    real = np.concatenate([cluster(60, 0), cluster(60, 30)])
    one_mode, off = cluster(80, 0), cluster(80, -30)
    precision, recall = manifold.precision_recall(one_mode, real)
    assert precision > 0.7 and recall < 0.55
    _, coverage = manifold.density_coverage(one_mode, real)
    assert 0.3 < coverage <= 0.5
    assert manifold.precision_recall(off, real) == (0.0, 0.0)
    assert manifold.density_coverage(off, real) == (0.0, 0.0)
    with pytest.raises(UsageError, match="3-th neighbour needs 4"):
        manifold.precision_recall(real[:3], real)


@pytest.mark.parametrize("d", [6, 120])
def test_a_resampled_distance_of_all_rows_is_the_distance(d):
    rng = np.random.RandomState(1)
    fake, real = rng.normal(size=(80, d)), Moments.of(rng.normal(size=(90, d)) + 0.3)
    distance = resampling.Resampled(fake, real)
    whole = frechet.frechet_distance(Moments.of(fake), real)
    assert distance(np.arange(80)) == pytest.approx(whole, rel=1e-5)
    some = rng.randint(80, size=50)
    part = frechet.frechet_distance(Moments.of(fake[some]), real)
    assert distance(some) == pytest.approx(part, rel=1e-5)


def test_the_bootstrap_error_is_the_spread_over_fresh_samples():
    rng = np.random.RandomState(2)
    normal = types.SimpleNamespace(mean=np.zeros(4), covariance=np.eye(4))
    fresh = lambda: resampling.Resampled(rng.normal(size=(400, 4)) + 0.5, normal)
    values = [distance(np.arange(400)) for distance in (fresh() for _ in range(100))]
    error = resampling.bootstrap(fresh(), rounds=100)
    assert error == pytest.approx(np.std(values), rel=0.35)


def test_infinity_removes_the_bias_of_a_finite_number_of_samples():
    rng = np.random.RandomState(3)
    d = 16
    normal = types.SimpleNamespace(mean=np.zeros(d), covariance=np.eye(d))
    distance = resampling.Resampled(rng.normal(size=(3000, d)), normal)
    biased = distance(np.arange(300))
    value, error = resampling.infinity(distance)
    assert abs(value) < 0.1 * biased and 0 < error < 0.1 * biased  # the truth is 0


def test_latents_stream_and_their_spectrum_is_that_of_white_noise():
    z = np.random.RandomState(4).normal(size=(64, 32, 32, 3)) * [1.0, 2.0, 0.5] + [0, 5, 0]
    whole = latents.Latents.of(z)
    parts = latents.Latents.of(z[:20]).merge(latents.Latents.of(z[20:]))
    summary = parts.summary(cut=0.5)
    np.testing.assert_allclose(parts.power, whole.power)
    np.testing.assert_allclose(summary["latent_mean"], z.mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(summary["latent_std"], z.reshape(-1, 3).std(0, ddof=1), rtol=1e-9)
    assert summary["latent_correlation"] < 0.02
    assert summary["latent_high_frequency"] == pytest.approx(1 - np.pi / 16, abs=0.02)
    profile = latents.radial_profile(whole.power)
    assert profile.sum() == pytest.approx(1) and np.ptp(profile[1:]) < 0.02


def test_a_smooth_latent_has_nothing_above_the_cut():
    x = np.cos(2 * np.pi * np.arange(32) / 32)
    z = np.broadcast_to(x[None, :, None, None], (1, 32, 32, 1))
    assert latents.Latents.of(z).summary()["latent_high_frequency"] < 1e-12
    stripes = np.broadcast_to((-1.0) ** np.arange(32)[None, :, None, None], (1, 32, 32, 1))
    assert latents.Latents.of(stripes).summary()["latent_high_frequency"] == pytest.approx(1)


def test_codebook_figures_are_those_of_uniform_and_single_use():
    uniform, single = latents.codebook([5] * 8), latents.codebook([0, 9, 0, 0])
    assert uniform == {"codebook_perplexity": pytest.approx(8.0), "codebook_usage": 1.0}
    assert single == {"codebook_perplexity": pytest.approx(1.0), "codebook_usage": 0.25}
