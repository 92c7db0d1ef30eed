"""A path beside the autoencoder's stack that starts from the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart as recipes
from ldm_jax.base import errors
from ldm_jax.metrics import linear
from ldm_jax.models import shortcut
from ldm_jax.models.autoencoder import Autoencoder
from ldm_jax.models.bottleneck import BOTTLENECKS
from ldm_jax.models.shortcut import rates
from ldm_jax.runs import check, data, start

SMALL = dict(width=8, mult=(1, 2, 2), blocks=1, mid_attention=False, groups=4)
SMALL |= dict(z_channels=4, latent_channels=4, posterior_logvar=-6.0, codebook_size=64)


def smooth(n=24, size=16, seed=0):
    """Pictures of a few waves, whose patches have few components."""
    rng, grid = np.random.default_rng(seed), np.linspace(0, np.pi, size)
    y, x = np.meshgrid(grid, grid, indexing="ij")
    waves = np.stack([np.ones_like(x), np.cos(x), np.cos(y), np.cos(2 * x)])
    pictures = np.einsum("nkc,khw->nhwc", rng.normal(size=(n, 4, 3)), waves)
    return (pictures / np.abs(pictures).max()).astype(np.float32)


def error(a, b):
    return float(np.mean((np.asarray(a) - np.asarray(b)) ** 2))


def test_patches_are_undone():
    x = np.arange(2 * 8 * 12 * 3.0).reshape(2, 8, 12, 3)
    p = shortcut.patches(x, 4)
    assert p.shape == (2, 2, 3, 48)
    np.testing.assert_array_equal(p[1, 1, 2], x[1, 4:8, 8:12].ravel())
    np.testing.assert_array_equal(shortcut.images(p, 4), x)


def test_components_are_those_of_a_singular_value_decomposition():
    x = smooth()
    p = shortcut.patches(x, 4).reshape(-1, 48).astype(np.float64)
    _, s, v = np.linalg.svd(p - p.mean(0), full_matrices=False)
    found = linear.components(x, 4, 3)
    np.testing.assert_allclose(np.abs(np.sum(found.vectors * v[:3].T, axis=0)), 1, atol=1e-6)
    np.testing.assert_allclose(found.deviations, s[:3] / np.sqrt(len(p)), rtol=1e-6)
    assert found.explained == pytest.approx((s[:3] ** 2).sum() / (s**2).sum())
    np.testing.assert_allclose(found.encode(x).reshape(-1, 3).std(0), 1, rtol=1e-6)
    # More channels than a patch of one pixel has numbers: nothing is lost, nothing breaks.
    np.testing.assert_allclose(linear.components(x, 1, 5).reconstruct(x), x, atol=1e-6)


def test_centres_are_never_worse_than_the_mean():
    x = smooth()
    one, many = linear.centres(x, 4, 1), linear.centres(x, 4, 32)
    p = shortcut.patches(x, 4)
    np.testing.assert_allclose(one.centres[0], p.reshape(-1, 48).mean(0), atol=1e-6)
    assert error(many.reconstruct(x), x) < 0.5 * error(one.reconstruct(x), x)


@pytest.mark.parametrize(
    "path, size, f",
    [
        ("linear", {}, 4),
        ("levels", {}, 4),
        ("levels", dict(patch=2, mult=(1,), fold=2), 4),
        ("folded", dict(patch=2, mult=(1,), fold=2), 2),  # a component for each of four positions
    ],
)
@pytest.mark.parametrize("bottleneck", ["kl", "vq", "none"])
def test_it_starts_where_components_end(bottleneck, path, size, f):
    x = smooth()
    model = Autoencoder(**(SMALL | size), bottleneck=bottleneck, shortcut=path)
    params = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    measured, _ = start.arrays(x, model, seed=0)
    begun = shortcut.started(params, measured, model.path_fold**2)
    assert jax.tree.map(jnp.shape, begun) == jax.tree.map(jnp.shape, params)
    reconstruct = lambda p: model.apply({"params": p}, x)
    rival = error(linear.components(x, f, f * f // 4).reconstruct(x), x)
    data = error(x.mean((0, 1, 2)), x)
    assert error(reconstruct(begun), x) < rival + 0.1 * data
    assert error(reconstruct(params), x) > rival + 0.5 * data  # at random it is lost


def test_folded_latents_start_as_those_of_every_place_by_itself():
    x, small = smooth(4), SMALL | dict(patch=2, mult=(1,), z_channels=3)
    model = Autoencoder(**(small | dict(latent_channels=8, fold=2)), shortcut="folded")
    params = model.init(jax.random.key(0), x[:1])["params"]
    begun = shortcut.started(params, start.arrays(x, model, seed=0)[0], 4)
    # The same network without the fold, with the block that all places share.
    plain = Autoencoder(**(small | dict(latent_channels=2)), shortcut="linear")
    into, out = begun["to_latent"]["kernel"], begun["from_latent"]["kernel"]
    own = begun | {
        "to_latent": {
            "kernel": jnp.concatenate([into[:6, :2], into[:6, 8:10]], axis=1),
            "bias": begun["to_latent"]["bias"][jnp.array([0, 1, 8, 9])],
        },
        "from_latent": {"kernel": out[:2, :3], "bias": begun["from_latent"]["bias"][:3]},
    }
    moments = jax.jit(lambda p: plain.apply({"params": p}, x, method="encode"))(own)
    folded = jax.jit(lambda p: model.apply({"params": p}, x, method="encode"))(begun)
    for i, of in enumerate((slice(None, 2), slice(2, None))):  # means, log variances
        wanted = shortcut.patches(moments[..., of], 2)
        np.testing.assert_allclose(folded[..., 8 * i : 8 * i + 8], wanted, atol=1e-5)
    z = moments[..., :2]
    decode = lambda net, p, z: jax.jit(net.apply, static_argnames="method")(
        {"params": p}, z, method="decode"
    )
    same = decode(model, begun, shortcut.patches(z, 2)), decode(plain, own, z)
    np.testing.assert_allclose(*same, atol=1e-5)


def test_channels_that_folded_places_cannot_share_are_refused():
    config = recipes.first_stage()
    config.model.update(fold=2, mult=(1, 2), latent_channels=6, shortcut="folded")
    source = data.open_source(config.data)
    wanted = r"latent_channels=6 must divide by 4, .* fold=2 .*; nearest: 8"
    with pytest.raises(errors.UsageError, match=wanted):
        check.check(data.resolve(config, source), source)


def test_codes_start_from_the_data_and_are_used():
    x = smooth()
    model = Autoencoder(**SMALL, bottleneck="vq", shortcut="linear")
    params = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    measured, _ = start.arrays(x, model, seed=0)
    used = lambda p: np.mean(
        BOTTLENECKS.get("vq").counts(p, model.apply({"params": p}, x, method="encode")).sum(0) > 0
    )
    assert used(shortcut.started(params, measured)) > 0.8 > used(params)


def test_every_level_of_the_decoder_sees_the_paths_image_and_is_the_plain_one_without():
    x, model = smooth(2), Autoencoder(**SMALL, shortcut="levels")
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    own = params["decoder"]
    seen = {name: own[name] for name in own if name.endswith("_path")}
    assert {name: layer["kernel"].shape for name, layer in seen.items()} == {
        "up_0_path": (3, 8 * 2),  # a level starts with the width of the one before
        "up_1_path": (3 * 2 * 2, 8 * 2),
        "up_2_path": (3 * 4 * 4, 8 * 2),
    }
    reconstruct = jax.jit(lambda own: model.apply({"params": params | {"decoder": own}}, x))
    blind = jax.tree.map(jnp.zeros_like, seen)
    plain = jax.jit(model.clone(shortcut="linear").apply)(
        {"params": params | {"decoder": {k: own[k] for k in own.keys() - seen.keys()}}}, x
    )
    np.testing.assert_allclose(reconstruct(own | blind), plain, atol=1e-5)
    for name in seen:
        one = reconstruct(own | blind | {name: seen[name]})
        assert np.abs(one - plain).max() > 1e-3, name


@pytest.mark.parametrize("f", [2, 4, 8, 32])
def test_a_step_of_adam_moves_the_latents_of_a_wide_path_no_further_than_those_of_a_narrow_one(f):
    model = Autoencoder(**(SMALL | dict(patch=f, mult=(1,))), shortcut="linear")
    white = jnp.ones((1, 32, 32, 3))
    params = jax.jit(model.init)(jax.random.key(0), white)["params"]
    step = jax.tree.map(lambda p, rate: 0.01 * rate * jnp.ones_like(p), params, rates(params))
    encode = jax.jit(
        lambda path: model.apply({"params": params | {"beside": path}}, white, method="encode")
    )
    moved = encode(params["beside"] | {"into": params["beside"]["into"] + step["beside"]["into"]})
    moved -= encode(params["beside"])
    np.testing.assert_allclose(moved[..., :4], 0.01 * min(3 * f * f, 48), rtol=1e-3)
    others = step | {"beside": {k: v for k, v in step["beside"].items() if k != "into"}}
    assert {float(leaf.max()) for leaf in jax.tree.leaves(others)} == {np.float32(0.01)}


def test_without_it_nothing_changes():
    plain = Autoencoder(**SMALL)
    params = plain.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    assert set(params) == {"encoder", "decoder", "to_latent", "from_latent"}
