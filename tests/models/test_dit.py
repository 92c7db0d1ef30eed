"""Laws of the diffusion transformer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dit as recipes
from ldm_jax.base import errors, tree
from ldm_jax.cost import flops
from ldm_jax.engine import optim
from ldm_jax.models import dit
from ldm_jax.models.dit import DiT

T = jnp.array([3, 700])
rng = np.random.default_rng(0)
X = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
TOKENS = rng.normal(size=(2, 5, 7)).astype(np.float32)
VECTOR = rng.normal(size=(2, 16)).astype(np.float32)


def _tiny(**kwargs):
    return DiT(**{"width": 16, "depth": 3, "heads": 2, "patch": 2} | kwargs)


def apply(model, params, *args, **kwargs):
    return jax.jit(model.apply)({"params": params}, *args, **kwargs)


# Millions of parameters without the classes' table, 10^9 multiplications of a forward pass at a
# latent of 32x32x4: table 1 and 4 of the paper, and its figure 2.
PUBLISHED = {"s2": (32.5, 6.06), "b2": (129.5, 23.01), "l2": (456.8, 80.71), "xl2": (673.7, 118.64)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_their_parameters_and_operations(name):
    width, depth, heads = recipes.SIZES[name[:-1]]
    model = DiT(width=width, depth=depth, heads=heads, patch=2, out_channels=8)
    x, t = jnp.zeros((1, 32, 32, 4)), jnp.zeros(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, t)
    millions, giga = PUBLISHED[name]
    np.testing.assert_allclose(tree.count(shapes) / 1e6, millions, rtol=2e-3)
    np.testing.assert_allclose(flops.count(model.apply, shapes, x, t) / 2e9, giga, rtol=1e-3)


def test_the_program_does_not_grow_with_the_depth():
    def lines(depth):
        model = _tiny(depth=depth)
        shapes = jax.eval_shape(model.init, jax.random.key(0), X, T)
        return str(jax.make_jaxpr(model.apply)(shapes, X, T)).count("\n")

    assert lines(2) == lines(9)


def test_it_starts_at_zero_and_every_layer_as_the_identity():
    model = _tiny(cross_attention=True)
    params = jax.jit(model.init)(jax.random.key(0), X, T, TOKENS)["params"]
    assert not np.any(apply(model, params, X, T, TOKENS))
    stack = params[tree.STACK]
    assert not np.any(stack["ada"]["kernel"]) and not np.any(stack["cross_attn"]["out"]["kernel"])
    kernels = stack["attn"]["qkv"]["kernel"]
    assert kernels.shape == (3, 16, 48) and not np.allclose(kernels[0], kernels[1])


@pytest.mark.parametrize("options", [{}, {"rope": True, "qk_norm": True, "cross_attention": True}])
def test_the_stack_is_its_layers_one_after_another(filled, options):
    model = _tiny(**options)
    params = filled(model, X, T, TOKENS, VECTOR)
    whole = apply(model, params, X, T, TOKENS, VECTOR)

    def by_hand(params):
        features = jnp.asarray(dit.blocks.timestep_embedding(T, dit.TIME_FEATURES))
        own = {"params": params["time"]}
        emb = dit.TimeEmbedding(16).apply(own, features) + VECTOR
        patch = params["patch_in"]
        x = jnp.einsum("bhpwqc,pqcd->bhwd", X.reshape(2, 4, 2, 4, 2, 3), patch["kernel"])
        x = (x + patch["bias"]).reshape(2, 16, 16) + dit.sinusoids(4, 4, 16)
        turns = dit.rotations(4, 4, 8) if model.rope else None
        layer = dit.Layer(heads=2, qk_norm=model.qk_norm)
        for i in range(3):
            one = jax.tree.map(lambda leaf, i=i: leaf[i], params[tree.STACK])
            seen = (TOKENS, None) if model.cross_attention else (None, None)
            x, _ = layer.apply({"params": one}, x, emb, None, turns, *seen)
        ada, out = params["out_ada"], params["patch_out"]
        shift, scale = jnp.split(jax.nn.silu(emb) @ ada["kernel"] + ada["bias"], 2, axis=1)
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = (x * (1 + scale[:, None]) + shift[:, None]) @ out["kernel"] + out["bias"]
        return jnp.einsum("bhwpqc->bhpwqc", x.reshape(2, 4, 4, 2, 2, 3)).reshape(X.shape)

    np.testing.assert_allclose(whole, jax.jit(by_hand)(params), atol=2e-5)


@pytest.mark.parametrize("part", ["vector", "concat", "tokens", "time"])
def test_every_condition_moves_the_output(filled, part):
    model = _tiny(cross_attention=True)
    inputs = dict(tokens=TOKENS, vector=VECTOR, concat=X[..., :1])
    params = filled(model, X, T, **inputs)
    t, changed = T, dict(inputs)
    if part == "time":
        t = T + 50
    else:
        changed[part] = inputs[part] + 1.0
    before, after = apply(model, params, X, T, **inputs), apply(model, params, X, t, **changed)
    assert np.abs(before - after).max() > 1e-2


def test_masked_tokens_are_not_seen(filled):
    model = _tiny(cross_attention=True)
    params = filled(model, X, T, TOKENS)
    mask = np.arange(5)[None] < np.array([[2], [5]])
    other = np.where(mask[..., None], TOKENS, 9.0)
    draw = lambda tokens: apply(model, params, X, T, tokens, mask=mask)
    np.testing.assert_allclose(draw(TOKENS), draw(other), atol=1e-6)


def test_rotations_say_where_tokens_lie_to_one_another():
    """A product of a query and a key depends on the difference of rows and of columns alone."""
    q, k = (np.tile(np.float32(rng.normal(size=8)), (1, 36, 1, 1)) for _ in range(2))
    turns = dit.rotations(6, 6, 8)
    logits = np.einsum("bnid,bmid->nm", dit._turn(q, *turns), dit._turn(k, *turns))
    logits = logits.reshape(6, 6, 6, 6)
    np.testing.assert_allclose(logits[0, 1, 2, 4], logits[3, 2, 5, 5], atol=1e-5)
    assert abs(logits[0, 1, 2, 4] - logits[0, 1, 4, 2]) > 1e-3


def test_queries_and_keys_of_any_length_attend_alike_where_they_are_normalised(filled):
    model = _tiny(qk_norm=True)
    params = filled(model, X, T)
    qkv = params[tree.STACK]["attn"]["qkv"]
    longer = np.repeat([5.0, 5.0, 1.0], 16)
    with_longer = jax.tree.map(lambda leaf: leaf * longer, qkv)
    other = params | {
        tree.STACK: params[tree.STACK] | {"attn": params[tree.STACK]["attn"] | {"qkv": with_longer}}
    }
    np.testing.assert_allclose(apply(model, params, X, T), apply(model, other, X, T), atol=1e-4)


def test_layers_that_embed_alike_are_one_embedding(filled):
    shared, separate = _tiny(), _tiny(separate=True)
    params = filled(shared, X, T, None, VECTOR)
    assert separate.vector_width == 3 * shared.vector_width
    copies = jax.tree.map(lambda leaf: np.stack([leaf] * 3), params["time"])
    own = {k: v for k, v in params.items() if k != "time"}
    own[tree.STACK] = params[tree.STACK] | {"time": copies}
    ours = apply(separate, own, X, T, None, np.tile(VECTOR, 3))
    np.testing.assert_allclose(ours, apply(shared, params, X, T, None, VECTOR), atol=1e-5)


def test_rematerialised_gradients_are_the_same(filled):
    params = filled(_tiny(), X, T)

    def gradient(model):
        loss = lambda params: jnp.sum(model.apply({"params": params}, X, T) ** 2)
        return jax.jit(jax.grad(loss))(params)

    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
    jax.tree.map(same, gradient(_tiny()), gradient(_tiny(remat=True, remat_saves="products")))


def test_what_does_not_fit_is_refused():
    with pytest.raises(errors.UsageError, match=r"width=20 .* heads=2; nearest: 16"):
        _tiny(width=20).check()
    with pytest.raises(ValueError, match=r"patch=3 .* got 8, nearest: 9"):
        jax.eval_shape(_tiny(patch=3).init, jax.random.key(0), X, T)


def test_optimizers_see_the_layers_of_a_stack_one_by_one():
    """Muon orthogonalises each layer's kernel; biases, stacked to matrices, do not decay."""
    model = _tiny()
    params = jax.eval_shape(model.init, jax.random.key(0), X, T)["params"]
    numbers = optim._matrices(params)
    qkv = numbers[tree.STACK]["attn"]["qkv"]
    assert qkv["kernel"].reduction_axis == (1,) and qkv["kernel"].output_axis == 2
    assert qkv["bias"] is None
    assert numbers["patch_in"]["kernel"].reduction_axis == (0, 1, 2)
    ones = {tree.STACK: {"kernel": jnp.ones((3, 4, 5)), "bias": jnp.ones((3, 5))}}
    tx = optim.adamw(lambda step: 1.0, weight_decay=0.5)
    decayed = jax.jit(lambda p: tx.update(jax.tree.map(jnp.zeros_like, p), tx.init(p), p)[0])(ones)
    assert not np.any(decayed[tree.STACK]["bias"])
    np.testing.assert_allclose(decayed[tree.STACK]["kernel"], -0.5)
