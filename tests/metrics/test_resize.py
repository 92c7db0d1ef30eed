import pathlib

import make_metrics_golden as golden
import numpy as np
import pytest
from PIL import Image

from ldm_jax.metrics import resize

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
