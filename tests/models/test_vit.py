"""DINOv2 and CLIP against transformers' with the same random weights, from uint8 images on."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import make_metrics_golden as golden
import numpy as np
import pytest

from ldm_jax.base.errors import UsageError
from ldm_jax.evaluation import measures
from ldm_jax.metrics import features
from ldm_jax.models import vit
from ldm_jax.weights import vit as weights

GOLDEN = np.load(pathlib.Path(golden.__file__).parent / "golden" / "metrics" / "transformers.npz")
close = lambda found, name: np.testing.assert_allclose(found, GOLDEN[name], atol=2e-5)


@pytest.fixture(scope="module")
def dinov2():
    return golden.dinov2_state()


@pytest.fixture(scope="module")
def clip():
    return golden.clip_state()


def test_images_to_dinov2s_features_are_those_of_transformers_and_metas_positions(dinov2):
    extract = features.EXTRACTORS.get("dinov2").bind(weights.dinov2(dinov2))
    found, logits = extract(golden.pixels(*golden.EMBEDDED))
    close(found, "dinov2")
    assert logits is None


def test_images_and_captions_to_clips_embeddings_are_those_of_transformers(clip):
    extractor, params = features.EXTRACTORS.get("clip_b32"), weights.both_sides(clip)
    found, _ = extractor.bind(params)(golden.pixels(*golden.EMBEDDED))
    close(found, "clip_image")
    close(jax.jit(extractor.embed)(params, golden.caption_ids().astype(np.int32)), "clip_text")


def test_positions_of_the_grid_that_they_are_of_stay_as_they_are():
    positions = jnp.asarray(np.random.default_rng(0).normal(size=(1 + 36, 8)), jnp.float32)
    np.testing.assert_array_equal(vit.interpolated(positions, 6, 6), positions)
    flat = jnp.ones_like(positions)
    np.testing.assert_allclose(vit.interpolated(flat, 4, 9), np.ones((1 + 36, 8)), atol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: state.pop("blocks.1.ls1.gamma"), "lacks what.*block_1/scale_1"),
        (lambda state: state.pop("pos_embed"), "DINOv2's weights.*it lacks pos_embed"),
        (lambda state: state.update(register_tokens=np.ones((1, 4, 128))), "register_tokens"),
        (lambda state: [state.pop(key) for key in list(state)[1:]], "it lacks"),
    ],
)
def test_weights_of_something_else_are_one_line(dinov2, tmp_path, change, message):
    state = dict(dinov2)
    change(state)
    np.savez(tmp_path / "other.npz", **state)
    with pytest.raises(UsageError, match=message):
        weights.read_dinov2(tmp_path / "other.npz")


def test_weights_of_another_size_are_not_these_features(dinov2, tmp_path):
    np.savez(tmp_path / "small.npz", **dinov2)
    with pytest.raises(UsageError, match=r"small.npz gives 128 features .* dinov2 has 1024"):
        measures.open_features("dinov2", tmp_path / "small.npz")


def test_a_text_encoder_alone_is_no_clip(clip, tmp_path):
    text = {k: v for k, v in clip.items() if k.startswith("text_model")}
    np.savez(tmp_path / "text.npz", **text)
    with pytest.raises(UsageError, match=r"CLIP's weights.*it lacks text_projection"):
        weights.read_clip(tmp_path / "text.npz")


def test_only_the_published_weights_give_a_figure_its_published_name():
    other = "0123456789abcdef" * 4
    for name, figure, published in (
        ("dinov2", "fd", "fd_dinov2"),
        ("dinov2_b", "kid", "kid_dinov2_b"),
        ("clip", "cmmd", "cmmd"),
        ("clip", "fd", "fd_clip"),
        ("clip_b32", "clip_score", "clip_score"),
        ("inception_spatial", "fd", "sfid"),
    ):
        extractor = features.EXTRACTORS.get(name)
        for digest in extractor.published:
            assert extractor.of(digest).name(f"{figure}/std") == f"{published}_std"
        if extractor.published:
            assert extractor.of(other).name(figure) == f"{published}_01234567"
            assert extractor.of(other).name(f"{figure}/std") == f"{published}_01234567_std"
        assert dataclasses.replace(extractor, digits="").name(figure) == published
