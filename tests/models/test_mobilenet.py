import jax
import make_metrics_golden as golden
import numpy as np
import pytest

from ldm_jax.base.errors import UsageError
from ldm_jax.metrics import features
from ldm_jax.models import mobilenet
from ldm_jax.weights.mobilenet import load


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return golden.save_mobilenet(tmp_path_factory.mktemp("mobilenet") / "weights.npz")


def test_features_are_1280_bounded_numbers_per_image(weights):
    images = np.random.default_rng(1).uniform(-1, 1, (3, 40, 48, 3)).astype(np.float32)
    params = load(weights)
    extract = jax.jit(mobilenet.features)
    whole = extract(params, images)
    assert whole.shape == (3, 1280)
    assert np.all(whole >= 0) and np.all(whole <= 6)  # relu6, then a mean
    np.testing.assert_allclose(extract(params, images[1:2]), whole[1:2], atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_depthwise_convolution_is_xlas_grouped_one(stride):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 9, 8, 5)).astype(np.float32)
    conv = {"kernel": rng.normal(size=(3, 3, 1, 5)).astype(np.float32), "bias": np.zeros(5)}
    expected = jax.lax.conv_general_dilated(
        x, conv["kernel"], (stride, stride), [(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=5,
    )  # fmt: skip
    np.testing.assert_allclose(mobilenet._depthwise(conv, x, stride), expected, atol=1e-5)


def test_the_registered_extractor_takes_any_image_size(weights):
    extract = features.EXTRACTORS.get("mobilenet").bind(load(weights))
    pooled, logits = extract(np.zeros((2, 50, 20, 3), np.uint8))
    assert pooled.shape == (2, 1280) and logits is None


def test_missing_or_foreign_weights_say_what_is_expected(tmp_path):
    with pytest.raises(UsageError, match="MobileNetV2"):
        load(tmp_path / "absent.npz")
    np.savez(tmp_path / "other.npz", conv_0_weight=np.zeros(3), fc_weight=np.zeros(3))
    with pytest.raises(UsageError, match="holds 1 convs"):
        load(tmp_path / "other.npz")
