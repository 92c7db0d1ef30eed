"""Laws of the procedural scenes and of the checker that grades them."""

import dataclasses
import io
import pickle

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ldm_jax.base import errors
from ldm_jax.data import sources
from ldm_jax.scenes import checker as scene_checker
from ldm_jax.scenes import scenes


def draw(size, count, seed=0, objects=1):
    source = sources.open_source("scenes", size=size, count=count, seed=seed, objects=objects)
    records = [source[i] for i in range(count)]
    return np.stack([r["image"] for r in records]), np.array([r["class"] for r in records])


def degrade(image, rng):
    """Blur of 2 % of the side, noise of 4 %, JPEG at quality 85."""
    blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(0.02 * len(image)))
    noisy = np.clip(np.asarray(blurred) + rng.normal(0, 10, image.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "jpeg", quality=85, subsampling=0)
    return np.asarray(Image.open(buffer))


def test_a_scene_depends_on_seed_and_index_alone():
    a, b = (sources.open_source("scenes", size=32, count=n, seed=7) for n in (20, 40))
    again = pickle.loads(pickle.dumps(a))
    for i in (3, 11):
        np.testing.assert_array_equal(a[i]["image"], b[i]["image"])
        np.testing.assert_array_equal(a[i]["image"], again[i]["image"])
    other = sources.open_source("scenes", size=32, count=20, seed=8)
    assert (a[3]["image"] != other[3]["image"]).any()
    assert len({a.fingerprint, b.fingerprint, other.fingerprint}) == 3


def test_the_same_scene_at_another_size_is_the_same_picture():
    small, _ = draw(32, 24)
    large, _ = draw(128, 24)
    shrunk = large.reshape(24, 32, 4, 32, 4, 3).mean((2, 4))
    error = np.abs(shrunk - small).mean((1, 2, 3))
    assert error.max() < 4, error


def test_classes_are_balanced():
    _, ids = draw(8, 16 * 5)
    assert (np.bincount(ids, minlength=16) == 5).all()


@pytest.mark.parametrize("objects", [1, 3, 9])
def test_boxes_enclose_what_segmentation_shows_and_lie_inside(objects):
    source = sources.open_source("scenes", size=128, count=20, seed=1, objects=objects)
    for i in range(20):
        record = source[i]
        assert record["boxes"].shape == (objects, 4)
        assert record["boxes"].min() >= 0 and record["boxes"].max() <= 1
        assert record["caption"].startswith(f"a {scenes.CLASSES[record['class']]}")
        for box, class_id in zip(record["boxes"], record["box_class"]):
            x0, y0, x1, y1 = np.round(box * 128).astype(int)
            inside = record["segmentation"][max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1]
            ys, xs = np.nonzero(inside == class_id + 1)
            assert abs(np.ptp(xs) + 1 - (x1 - x0)) <= 3 and abs(np.ptp(ys) + 1 - (y1 - y0)) <= 3


@pytest.mark.parametrize("size", [32, 64])
def test_the_checker_reads_clean_and_degraded_scenes(size):
    rng, clean, degraded = np.random.default_rng(0), [], []
    for seed in range(3):
        images, ids = draw(size, 208, seed=seed)
        clean.append(scene_checker.check(images) == ids)
        worse = np.stack([degrade(image, rng) for image in images])
        degraded.append(scene_checker.check(worse) == ids)
    assert np.mean(clean) >= 0.995
    assert np.mean(degraded) >= 0.97


def _rubbish(size, n=100):
    rng = np.random.default_rng(0)
    composed = [scenes.compose(5, i) for i in range(n)]
    whole = np.stack([scenes.render(s, size)[0] for s in composed])
    empty = [dataclasses.replace(s, things=()) for s in composed]
    empty = np.stack([scenes.render(s, size)[0] for s in empty])
    middle = [int(s.things[0].x * size) for s in composed]
    half = empty.copy()
    for picture, full, x in zip(half, whole, middle):
        picture[:, :x] = full[:, :x]
    two_hued = np.stack(
        [np.concatenate([a[:, :x], a[:, x:, [1, 2, 0]]], 1) for a, x in zip(whole, middle)]
    )
    noise = rng.integers(0, 256, (n, size, size, 3)).astype(np.uint8)
    clouds = rng.integers(0, 256, (n, 5, 5, 3)).astype(np.uint8)
    clouds = np.stack([np.asarray(Image.fromarray(c).resize((size, size))) for c in clouds])
    crowd, _ = draw(size, n, objects=3)
    return {
        "empty": empty,
        "half": half,
        "two-hued": two_hued,
        "noise": noise,
        "clouds": clouds,
        "crowd": crowd,
    }


@pytest.mark.parametrize("size", [32, 64])
def test_the_checker_rejects_rubbish(size):
    for kind, images in _rubbish(size).items():
        seen = scene_checker.check(images)
        assert np.mean(seen == -1) >= 0.95, kind


def test_the_checker_takes_large_pictures_and_none():
    images, ids = draw(160, 16)
    np.testing.assert_array_equal(scene_checker.check(images), ids)
    assert scene_checker.check(images[:0]).shape == (0,)


def test_impossible_scenes_are_usage_errors():
    with pytest.raises(errors.UsageError, match="objects 1 to 9"):
        sources.open_source("scenes", objects=10)
