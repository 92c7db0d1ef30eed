"""Laws of the perceptual distance. Its parity with the official one was shown on golden numbers."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.base import errors
from ldm_jax.models import lpips

# torchvision's positions of VGG16's convolutions
POSITIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Both weight files for a VGG16 with an eighth of the channels."""
    stages = tuple(tuple(width // 8 for width in widths) for widths in lpips.STAGES)
    monkeypatch.setattr(lpips, "STAGES", stages)
    rng, backbone, c_in = np.random.default_rng(0), {}, 3
    widths = [width for stage in stages for width in stage]
    for position, width in zip(POSITIONS, widths, strict=True):
        weight = rng.normal(size=(width, c_in, 3, 3)) * (2 / (9 * c_in)) ** 0.5
        backbone[f"features.{position}.weight"] = weight.astype(np.float32)
        backbone[f"features.{position}.bias"] = np.zeros(width, np.float32)
        c_in = width
    heads = {
        f"lin{i}.model.1.weight": np.ones((1, stage[-1], 1, 1), np.float32)
        for i, stage in enumerate(stages)
    }
    np.savez(tmp_path / "vgg16.npz", **backbone)
    np.savez(tmp_path / "heads.npz", **heads)
    return tmp_path / "vgg16.npz", tmp_path / "heads.npz"


def test_it_is_a_symmetric_distance_with_finite_gradients(files):
    params = {"params": lpips.load(*files)}
    distance = jax.jit(lpips.LPIPS().apply)
    x, y = jax.random.uniform(jax.random.key(0), (2, 2, 32, 32, 3), minval=-1, maxval=1)
    assert distance(params, x, y).shape == (2,)
    assert (distance(params, x, y) > 0).all()
    np.testing.assert_allclose(distance(params, x, y), distance(params, y, x), rtol=1e-5)
    np.testing.assert_allclose(distance(params, x, x), 0.0, atol=1e-10)
    # identical images, where a naive unit norm has no gradient
    grad = jax.jit(jax.grad(lambda y: lpips.LPIPS().apply(params, x, y).sum()))(x)
    assert jnp.isfinite(grad).all()


def test_loaded_params_are_the_modules(files):
    x = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda: lpips.LPIPS().init(jax.random.key(0), x, x))["params"]
    same = jax.tree.map(lambda a, b: a.shape == b.shape, shapes, lpips.load(*files))
    assert jax.tree.all(same)


def test_missing_files_and_weights_say_where_to_get_them(files, tmp_path):
    with pytest.raises(errors.UsageError, match=r"vgg16-397923af\.pth"):
        lpips.load(tmp_path / "none.pth", files[1])
    with pytest.raises(errors.UsageError, match="PerceptualSimilarity"):
        lpips.load(files[0], tmp_path / "none.pth")
    with pytest.raises(errors.UsageError, match="lack"):
        lpips.load(files[1], files[1])


def test_pth_without_torch_names_the_pip_command(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "vgg.pth").write_bytes(b"")
    with pytest.raises(errors.UsageError, match="pip install torch"):
        lpips.load(tmp_path / "vgg.pth", files[1])
