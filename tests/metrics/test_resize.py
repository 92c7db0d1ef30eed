import pathlib

import make_metrics_golden as golden
import numpy as np
import pytest
from PIL import Image

from ldm_jax.metrics import features, resize

GOLDEN = np.load(pathlib.Path(golden.__file__).parent / "golden" / "metrics" / "resize.npz")


@pytest.mark.parametrize("name", GOLDEN.files)
def test_resizing_is_torch_fidelitys_and_clean_fids(name):
    kind, _, case = name.rpartition("_")
    resized = resize.resize(golden.pixels(*golden.RESIZED[case]), kind, 299)[0]
    np.testing.assert_allclose(golden.spots(resized), GOLDEN[name], atol=1e-3)


@pytest.mark.parametrize("old", [5, 12, 31])
def test_bicubic_is_pillows_and_every_resize_keeps_a_flat_image(old):
    image = golden.pixels(old, old)
    theirs = Image.fromarray(image[0, :, :, 0].astype(np.float32)).resize((12, 12), 3)
    ours = resize.resize(image, "pil_bicubic", 12)[0, :, :, 0]
    np.testing.assert_allclose(ours, np.asarray(theirs).clip(0, 255), atol=1e-3)
    flat = np.full((1, old, old, 3), 77, np.uint8)
    for kind in resize.RESIZES.names():
        np.testing.assert_allclose(resize.resize(flat, kind, 12), 77.0, rtol=1e-5)


@pytest.mark.parametrize("height, width", [(32, 32), (256, 256), (61, 40), (40, 301)])
def test_preparing_8_bit_images_is_pillows_to_the_last_bit(height, width):
    """The references' own steps: dgm-eval's, those of CMMD's code, those of CLIP's."""
    image = golden.pixels(height, width)
    pixels, edge = Image.fromarray(image[0]), min(height, width)
    bicubic = lambda picture, *size: picture.resize(size, Image.BICUBIC)
    same = lambda ours, theirs: np.testing.assert_array_equal(ours[0], np.asarray(theirs))

    same(resize.pillow(image, 224, 224), bicubic(pixels, 224, 224))

    left, top = (width - edge) // 2, (height - edge) // 2
    cropped = pixels.crop((left, top, left + edge, top + edge))
    same(features.crop_and_resize(image, 336), bicubic(cropped, 336, 336))

    whole = bicubic(pixels, int(224 * width / edge), int(224 * height / edge))
    left, top = (round((n - 224) / 2.0) for n in whole.size)
    same(features.resize_and_crop(image, 224), whole.crop((left, top, left + 224, top + 224)))
