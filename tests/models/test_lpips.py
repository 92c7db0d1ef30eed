"""Laws of the perceptual distance. Its parity with the official one was shown on golden numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.base import errors
from ldm_jax.models import lpips
from ldm_jax.weights.lpips import load

# torchvision's positions of VGG16's convolutions
POSITIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Both weight files for a VGG16 with an eighth of the channels."""
    thin = lambda layer: layer._replace(width=layer.width // 8)
    layers = [thin(x) if isinstance(x, lpips.Conv) else x for x in lpips.NETWORKS["vgg"]]
    monkeypatch.setitem(lpips.NETWORKS, "vgg", tuple(layers))
    rng, backbone, c_in = np.random.default_rng(0), {}, 3
    widths = [layer.width for layer in layers if isinstance(layer, lpips.Conv)]
    for position, width in zip(POSITIONS, widths, strict=True):
        weight = rng.normal(size=(width, c_in, 3, 3)) * (2 / (9 * c_in)) ** 0.5
        backbone[f"features.{position}.weight"] = weight.astype(np.float32)
        backbone[f"features.{position}.bias"] = np.zeros(width, np.float32)
        c_in = width
    heads = {
        f"lin{i}.model.1.weight": np.ones((1, width, 1, 1), np.float32)
        for i, width in enumerate((8, 16, 32, 64, 64))
    }
    np.savez(tmp_path / "vgg16.npz", **backbone)
    np.savez(tmp_path / "heads.npz", **heads)
    return tmp_path / "vgg16.npz", tmp_path / "heads.npz"


def test_it_is_a_symmetric_distance_with_finite_gradients(files):
    params = {"params": load(*files)}
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
    same = jax.tree.map(lambda a, b: a.shape == b.shape, shapes, load(*files))
    assert jax.tree.all(same)


def test_missing_files_and_weights_say_where_to_get_them(files, tmp_path):
    with pytest.raises(errors.UsageError, match=r"vgg16-397923af\.pth"):
        load(tmp_path / "none.pth", files[1])
    with pytest.raises(errors.UsageError, match="PerceptualSimilarity"):
        load(files[0], tmp_path / "none.pth")
    with pytest.raises(errors.UsageError, match="lack"):
        load(files[1], files[1])


def test_a_damaged_file_is_one_line(files, tmp_path):
    (tmp_path / "vgg.pth").write_bytes(b"")
    with pytest.raises(errors.UsageError, match=r"vgg\.pth cannot be read"):
        load(tmp_path / "vgg.pth", files[1])


@pytest.mark.parametrize(
    "net, values", [("alex", (0.88875, 0.88705)), ("squeeze", (0.97681, 0.95217))]
)
def test_other_networks_give_torchs_numbers(net, values, tmp_path):
    """values: computed with torch 2.13 on the same weights (torchvision's layers)."""
    weights = random_weights(net)
    np.savez(tmp_path / "all.npz", **weights)
    params = load(tmp_path / "all.npz", tmp_path / "all.npz")
    assert lpips.network(params) == net
    x, y = np.random.default_rng(1).uniform(-1, 1, (2, 2, 61, 75, 3)).astype(np.float32)
    got = jax.jit(lpips.LPIPS(net).apply)({"params": params}, x, y)
    np.testing.assert_allclose(got, values, rtol=1e-4)


def random_weights(net):
    """A state dict as torchvision and lpips name it, from a seed."""
    rng, weights = np.random.default_rng(0), {}
    image = jnp.zeros((1, 64, 64, 3))
    init = jax.eval_shape(lambda: lpips.LPIPS(net).init(jax.random.key(0), image, image))
    order = lambda name: (int(name.split("_")[1]), "expand" in name, name)
    for name in sorted(init["params"][net], key=order):
        conv = init["params"][net][name]
        shape = tuple(conv["kernel"].shape[i] for i in (3, 2, 0, 1))
        key = "features." + name.removeprefix("conv_").replace("_", ".")
        scale = (2 / np.prod(shape[1:])) ** 0.5
        weights[key + ".weight"] = (scale * rng.normal(size=shape)).astype(np.float32)
        weights[key + ".bias"] = (0.1 * rng.normal(size=shape[:1])).astype(np.float32)
    taps = [a.width for a, b in zip(lpips.NETWORKS[net], lpips.NETWORKS[net][1:]) if b == lpips.TAP]
    for i, width in enumerate(taps):
        weights[f"lin{i}.model.1.weight"] = rng.uniform(size=(1, width, 1, 1)).astype(np.float32)
    return weights
