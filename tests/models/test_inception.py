"""Against torch-fidelity's network with the same random weights (tests/make_metrics_golden.py)."""

import json
import pathlib

import jax
import make_metrics_golden as golden
import numpy as np
import pytest

from ldm_jax.base.errors import UsageError
from ldm_jax.metrics import features
from ldm_jax.models import inception
from ldm_jax.weights import inception as weights

GOLDEN = np.load(pathlib.Path(golden.__file__).parent / "golden" / "metrics" / "inception.npz")
LAYERS = set(GOLDEN.files) - {"shapes", "pooled", "logits", "whole_pooled", "whole_logits"}


@pytest.fixture(scope="module")
def state():
    return golden.inception_state(json.loads(str(GOLDEN["shapes"])))


def test_every_layer_is_torch_fidelitys(state):
    """94 convolutions and 11 blocks: their own values, their mean and their largest."""
    x = (golden.pixels(golden.SIDE, golden.SIDE).astype(np.float32) - 128.0) / 128.0
    apply = jax.jit(
        inception.Inception().apply, static_argnames=("capture_intermediates", "mutable")
    )
    is_layer = lambda module, _: isinstance(module, (inception.ConvNorm, inception.Block))
    (pooled, logits), kept = apply(
        weights.convert(state), x, capture_intermediates=is_layer, mutable="intermediates"
    )
    found = {"pooled": pooled, "logits": logits}
    for path, value in jax.tree_util.tree_leaves_with_path(kept["intermediates"]):
        found["/".join(str(k.key) for k in path[:-2])] = value
    assert found.keys() == LAYERS | {"pooled", "logits"} and len(LAYERS) == 105
    for name, value in found.items():
        expected, actual = GOLDEN[name], golden.tap(value[0])
        scale = expected[-1]
        np.testing.assert_allclose(actual / scale, expected / scale, atol=1e-5, err_msg=name)
    # sFID takes ADM's mixed_6/conv as the first channels of the block that it is in.
    first = found["Mixed_6d/branch1x1"]
    np.testing.assert_array_equal(found["Mixed_6d"][..., : first.shape[-1]], first)


def test_the_spatial_features_of_sfid_are_7_channels_of_a_map_of_17_by_17(state):
    extractor = features.EXTRACTORS.get("inception_spatial")
    pixels = jax.ShapeDtypeStruct((2, 64, 80, 3), np.uint8)
    found, _ = jax.eval_shape(extractor.apply, weights.convert(state), pixels)
    assert found.shape == (2, 7 * 17 * 17) == (2, extractor.dimension)


def test_uint8_images_to_features_and_logits_are_torch_fidelitys(state):
    extract = features.EXTRACTORS.get("inception").bind(weights.convert(state))
    for found, name in zip(extract(golden.pixels(64, 80)), ("whole_pooled", "whole_logits")):
        scale = np.abs(GOLDEN[name]).max()
        np.testing.assert_allclose(found[0] / scale, GOLDEN[name] / scale, atol=1e-5)


def test_only_the_published_weights_are_taken(tmp_path):
    with pytest.raises(UsageError, match=r"inception:fid.*no such file"):
        weights.load(tmp_path / "absent.pth")
    other = tmp_path / "pt_inception.pth"
    other.write_bytes(b"other")
    with pytest.raises(UsageError, match="not the published ones"):
        weights.load(other)


def test_weights_that_lack_a_layer_say_which(state):
    part = {k: v for k, v in state.items() if k != "Mixed_6a.branch3x3.bn.running_var"}
    with pytest.raises(UsageError, match="Mixed_6a/branch3x3/bn/var"):
        weights.convert(part)
