"""Laws of U-ViT."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import uvit as recipes
from ldm_jax.base import errors, tree
from ldm_jax.models import uvit
from ldm_jax.models.uvit import UViT
from ldm_jax.stages.sampling import Sampling

T = jnp.array([3, 700])
rng = np.random.default_rng(0)
X = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
TOKENS = rng.normal(size=(2, 5, 7)).astype(np.float32)


def apply(model, params, *args, **kwargs):
    return jax.jit(model.apply)({"params": params}, *args, **kwargs)


# Millions of parameters, table 1 of the paper; but for S, with ImageNet's classes.
PUBLISHED = {"s2": 44, "m2": 131, "l2": 287, "h2": 501}


def _tiny(**kwargs):
    return UViT(**{"width": 16, "depth": 4, "heads": 2, "patch": 2} | kwargs)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_their_parameters(name):
    width, depth, heads = recipes.SIZES[name[:-1]]
    model = UViT(width=width, depth=depth, heads=heads, out_channels=4, conv_out=name != "h2")
    inputs = jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), jnp.zeros((1, 1, width))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    classes = 0 if name == "s2" else 1001 * width
    assert round((tree.count(shapes) + classes) / 1e6) == PUBLISHED[name]


def test_the_program_does_not_grow_with_the_depth():
    def lines(depth):
        model = _tiny(depth=depth)
        shapes = jax.eval_shape(model.init, jax.random.key(0), X, T, TOKENS)
        return str(jax.make_jaxpr(model.apply)(shapes, X, T, TOKENS)).count("\n")

    assert lines(2) == lines(8)


def test_each_layer_behind_the_middle_reads_its_counterpart(filled):
    model = _tiny(conv_out=False)
    params = filled(model, X, T, TOKENS)
    layer = uvit.Layer(heads=2)

    def by_hand(params):
        def one(half, i):
            own = jax.tree.map(lambda leaf: leaf[i], params[half][tree.STACK])
            return lambda x, skip=None: layer.apply({"params": own}, x, skip, None)[0]

        dense = lambda name, x: x @ params[name]["kernel"] + params[name]["bias"]
        cut = X.reshape(2, 4, 2, 4, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 16, 12)
        patches = cut @ params["patch_in"]["kernel"].reshape(12, 16) + params["patch_in"]["bias"]
        time = uvit.blocks.timestep_embedding(T, 16)[:, None]
        x = jnp.concatenate([time, dense("tokens_in", TOKENS), patches], axis=1)
        x = x + params["positions"]
        first = one("before", 0)(x)
        second = one("before", 1)(first)
        x = layer.apply({"params": params["middle"]}, second, None, None)[0]
        x = one("behind", 1)(one("behind", 0)(x, second), first)
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        x = x * params["norm_out"]["scale"] + params["norm_out"]["bias"]
        x = dense("patch_out", x[:, -16:])
        return jnp.einsum("bhwpqc->bhpwqc", x.reshape(2, 4, 4, 2, 2, 3)).reshape(X.shape)

    whole = apply(model, params, X, T, TOKENS)
    np.testing.assert_allclose(whole, jax.jit(by_hand)(params), atol=2e-5)


@pytest.mark.parametrize("deviation", [0.02, 1.0])
def test_embeddings_of_places_start_with_their_deviation(deviation):
    model = _tiny(width=64, position_std=deviation)
    params = jax.jit(model.init)(jax.random.key(0), X, T, TOKENS)["params"]
    np.testing.assert_allclose(np.std(params["positions"]), deviation, rtol=0.1)


@pytest.mark.parametrize("part", ["concat", "tokens", "t", "time"])
def test_every_condition_moves_the_output(filled, part):
    inputs = dict(t=T, tokens=TOKENS, concat=X[..., :1], time=np.zeros((2, 16), np.float32))
    model = _tiny(time_mlp=True)
    params = filled(model, X, **inputs)
    changed = inputs | {part: inputs[part] + (50 if part == "t" else 1)}
    before, after = apply(model, params, X, **inputs), apply(model, params, X, **changed)
    assert np.abs(before - after).max() > 1e-3


def test_masked_tokens_are_not_seen(filled):
    model = _tiny()
    params = filled(model, X, T, TOKENS)
    mask = np.arange(5)[None] < np.array([[2], [5]])
    other = np.where(mask[..., None], TOKENS, 9.0)
    draw = lambda tokens: apply(model, params, X, T, tokens, mask=mask)
    np.testing.assert_allclose(draw(TOKENS), draw(other), atol=1e-6)
    assert np.abs(draw(TOKENS) - apply(model, params, X, T, TOKENS)).max() > 1e-3


def test_rematerialised_gradients_are_the_same(filled):
    params = filled(_tiny(), X, T, TOKENS)

    def gradient(model):
        loss = lambda params: jnp.sum(model.apply({"params": params}, X, T, TOKENS) ** 2)
        return jax.jit(jax.grad(loss))(params)

    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
    jax.tree.map(same, gradient(_tiny()), gradient(_tiny(remat=True, remat_saves="products")))


def test_larger_pictures_are_drawn_in_tiles_of_the_training_size_and_smaller_ones_refused():
    denoiser, codec = types.SimpleNamespace(backbone=_tiny(name="net")), types.SimpleNamespace(f=4)
    model = types.SimpleNamespace(denoiser=denoiser, codec=codec, size=32, divisor=8)
    assert Sampling().tiling(model, 32, 32) is None
    assert Sampling().tiling(model, 32, 40).size == 8
    for tile, height in ((0, 24), (16, 32)):
        with pytest.raises(errors.UsageError, match=r"the size of its training alone, 32 pixels"):
            Sampling(tile=tile).tiling(model, height, 64)


def test_what_does_not_fit_is_refused(filled):
    with pytest.raises(errors.UsageError, match=r"width=15 must divide by heads=2; nearest: 16"):
        _tiny(width=15).check()
    with pytest.raises(errors.UsageError, match=r"depth=3 must be even.*nearest: 4"):
        _tiny(depth=3).check()
    with pytest.raises(ValueError, match=r"patch=3 .* got 8, nearest: 9"):
        jax.eval_shape(_tiny(patch=3).init, jax.random.key(0), X, T)
    params = filled(_tiny(), X, T, TOKENS)
    with pytest.raises(ValueError, match=r"made for 22 tokens .* not 20"):
        apply(_tiny(), params, X, T, TOKENS[:, :3])
