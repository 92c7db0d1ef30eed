"""Laws of the transforms: pixels, boxes and segmentation move together."""

import numpy as np
import pytest
from PIL import Image

from ldm_jax.base import errors
from ldm_jax.data import images, transforms


def record(h=40, w=64, x=30, y=12, side=16):
    """A white square on black, its box and its segmentation."""
    image = np.zeros((h, w, 3), np.uint8)
    image[y : y + side, x : x + side] = 255
    boxes = np.array([[x / w, y / h, (x + side) / w, (y + side) / h]], np.float32)
    ids = np.array([3], np.int32)
    segmentation = (image[..., 0] > 0).astype(np.uint8)
    return {"image": image, "boxes": boxes, "box_class": ids, "segmentation": segmentation}


def found(mask):
    """The box around a mask: x0, y0, x1, y1 in [0, 1]."""
    ys, xs = np.nonzero(mask)
    h, w = mask.shape
    return np.array([xs.min() / w, ys.min() / h, (xs.max() + 1) / w, (ys.max() + 1) / h])


@pytest.mark.parametrize(("mode", "least"), [("center", 1.0), ("random", 1.0), ("random", 0.6)])
@pytest.mark.parametrize("size", [20, 40, 80])
def test_boxes_and_segmentation_follow_crop_and_flip(mode, least, size):
    chain = [transforms.Crop(size, mode, least=least), transforms.Flip()]
    for seed in range(8):
        out, rng = record(), np.random.default_rng(seed)
        for transform in chain:
            out = transform(out, rng)
        assert out["image"].shape == (size, size, 3) and out["segmentation"].shape == (size, size)
        if len(out["boxes"]):
            tolerance = 1.01 / min(size, 40)
            seen = found(out["image"][..., 0] > 127)
            np.testing.assert_allclose(out["boxes"][0], seen, atol=tolerance)
            np.testing.assert_allclose(found(out["segmentation"]), seen, atol=tolerance)


def test_smaller_random_crops_are_the_official_loader_of_super_resolution():
    """A square whose side is drawn between half of the short side and all of it, then resized."""
    image = np.random.default_rng(0).integers(0, 256, (37, 52, 3)).astype(np.uint8)
    crop, given, sides = transforms.Crop(8, "random", "area", least=0.5), {"image": image}, set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        side = int(37 * rng.uniform(0.5, 1))
        top, left = (int(rng.integers(n - side + 1)) for n in (37, 52))
        window = Image.fromarray(image[top : top + side, left : left + side])
        expected = np.asarray(window.resize((8, 8), Image.Resampling.BOX))
        out = crop(given, np.random.default_rng(seed))
        np.testing.assert_array_equal(out["image"], expected)
        sides.add(side)
    assert min(sides) == 18 and max(sides) == 36


def test_center_crop_is_the_official_lsun_loader():
    image = np.random.default_rng(0).integers(0, 256, (37, 52, 3)).astype(np.uint8)
    short = min(image.shape[:2])
    top, left = ((n - short) // 2 for n in image.shape[:2])
    expected = Image.fromarray(image[top : top + short, left : left + short])
    expected = np.asarray(expected.resize((16, 16), Image.Resampling.BICUBIC))
    out = transforms.Crop(16)({"image": image}, np.random.default_rng(0))
    np.testing.assert_array_equal(out["image"], expected)


def test_random_crop_reaches_both_ends_and_square_images_pass_whole():
    image = np.arange(30, dtype=np.uint8)[None, :, None].repeat(10, 0).repeat(3, 2)
    crop, rng = transforms.Crop(10, "random"), np.random.default_rng(0)
    starts = {int(crop({"image": image}, rng)["image"][0, 0, 0]) for _ in range(400)}
    assert starts == set(range(21))
    square = image[:, :10]
    np.testing.assert_array_equal(crop({"image": square}, rng)["image"], square)


def test_boxes_outside_the_window_go():
    out = transforms.Crop(40)(record(x=0, side=8), np.random.default_rng(0))
    assert out["boxes"].shape == (0, 4) and out["box_class"].shape == (0,)


def test_flip_is_fair():
    rng = np.random.default_rng(0)
    image = np.arange(2, dtype=np.uint8)[None, :, None].repeat(3, 2)
    flipped = [transforms.Flip()({"image": image}, rng)["image"][0, 0, 0] for _ in range(1000)]
    assert 440 < np.sum(flipped) < 560


def test_to_float_spans_minus_one_to_one():
    image = np.array([[[0, 255, 51]]], np.uint8)
    out = transforms.ToFloat()({"image": image}, None)["image"]
    np.testing.assert_allclose(out[0, 0], [-1, 1, -0.6], atol=1e-6)
    assert out.dtype == np.float32


def test_unknown_choices_are_usage_errors():
    with pytest.raises(errors.UsageError, match=r"'centre'.*center"):
        transforms.standard(8, crop="centre")
    with pytest.raises(errors.UsageError, match="did you mean 'bicubic'"):
        transforms.standard(8, interpolation="bicubik")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((8, 8, 3), np.float32), "is of float32, not uint8 from 0 to 255"),
        (np.zeros((8, 8), np.uint8), r"is of shape \(8, 8\), not \[h, w, 3\]"),
    ],
)
def test_an_image_is_bytes_of_three_channels(image, words):
    with pytest.raises(images.BadRecord, match=words):
        transforms.Crop(8, "center", "bicubic")({"image": image}, np.random.default_rng(0))
