"""Laws of conditioners and of the denoiser that hears them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.base import errors, values
from ldm_jax.models import clip, conditioners  # noqa: F401  (clip registers itself)
from ldm_jax.models.conditioners import ClassEmbedder, Cond
from ldm_jax.models.denoiser import Denoiser
from ldm_jax.models.dit import DiT
from ldm_jax.models.unet import UNet
from ldm_jax.models.uvit import UViT

KEY = jax.random.key(0)
KEEP, DROP = jnp.array([False, False]), jnp.array([True, True])
X, T = jax.random.normal(KEY, (2, 8, 8, 3)), jnp.array([5, 10])


def _denoiser(*conds):
    shape = dict(width=8, mult=(1, 2), blocks=1, attention=(2,), heads=2)
    return Denoiser(UNet(**shape, cross_attention=True, name="unet"), conds)


@pytest.mark.parametrize("place, shape", [("tokens", (2, 1, 6)), ("vector", (2, 6))])
def test_dropped_class_is_the_null_class(place, shape):
    embedder = ClassEmbedder(10, 6, place)
    batch, null = {"class": jnp.array([3, 7])}, {"class": jnp.array([10, 10])}
    params = embedder.init(KEY, batch, KEEP)
    assert params["params"]["table"]["embedding"].shape == (11, 6)
    dropped = embedder.apply(params, batch, DROP)
    assert getattr(dropped, place).shape == shape
    jax.tree.map(np.testing.assert_array_equal, dropped, embedder.apply(params, null, KEEP))
    kept = embedder.apply(params, batch, jnp.array([True, False]))
    np.testing.assert_array_equal(
        getattr(kept, place)[1], getattr(embedder.apply(params, batch, KEEP), place)[1]
    )


def test_cond_is_a_pytree_whose_absent_parts_are_no_leaves():
    assert jax.tree.leaves(Cond()) == []
    doubled = jax.tree.map(lambda x: 2 * x, Cond(vector=jnp.ones(3)))
    np.testing.assert_array_equal(doubled.vector, 2.0)
    assert doubled.tokens is None


def test_merge_joins_tokens_and_channels_and_adds_vectors():
    image, rows = jnp.ones((2, 4, 4, 3)), jnp.ones((2, 6))
    masked = Cond(jnp.ones((2, 2, 6)), rows, image, jnp.zeros((2, 2), bool))
    merged = conditioners.merge([masked, Cond(jnp.zeros((2, 3, 6)), 2 * rows, image)])
    assert merged.tokens.shape == (2, 5, 6)
    assert merged.concat.shape == (2, 4, 4, 6)
    np.testing.assert_array_equal(merged.vector, 3.0)
    np.testing.assert_array_equal(merged.mask, [[False, False, True, True, True]] * 2)
    assert conditioners.merge([]) == Cond()


@pytest.mark.parametrize("net", ["unet", "dit", "uvit"])
def test_a_network_that_is_told_its_guidance_starts_as_it_was_and_can_hear_it(net, filled):
    """Rows with the null condition hear theirs, too."""
    unet = UNet(width=8, mult=(1,), blocks=1, attention=(), heads=1, groups=4, name="net")
    dit = DiT(width=16, depth=1, heads=2, name="net")
    net = {"unet": unet, "dit": dit, "uvit": UViT(width=16, depth=2, heads=2, name="net")}[net]
    scalar = conditioners.ScalarEmbedder(net.time_width, name="told")
    plain, told, batch = Denoiser(net), Denoiser(net, (scalar,)), {"guidance": jnp.array([3, 7.5])}
    fresh = scalar.init(KEY, batch, KEEP)["params"]
    assert not np.any(fresh["to_time"]["kernel"])
    params = filled(told, X, T, batch)
    apply = jax.jit(lambda params, batch, drop: told.apply({"params": params}, X, T, batch, drop))
    was = jax.jit(lambda net: plain.apply({"params": {"net": net}}, X, T))(params["net"])
    np.testing.assert_allclose(apply(params | {"told": fresh}, batch, KEEP), was, atol=1e-5)
    heard = apply(params, batch, KEEP)
    assert np.abs(heard - was).max() > 1e-3
    np.testing.assert_array_equal(apply(params, batch, DROP), heard)
    other = apply(params, {"guidance": jnp.array([3.0, 2.0])}, KEEP)
    np.testing.assert_array_equal(other[0], heard[0])
    assert np.abs(other[1] - heard[1]).max() > 1e-3


def test_what_is_told_is_drawn_within_its_bounds_and_comes_from_no_data():
    told = Denoiser(None, (conditioners.ScalarEmbedder(8, bounds=(1.0, 8.0)),))
    drawn = told.draw_told(KEY, 1000)["guidance"]
    assert 1.0 <= drawn.min() < 1.1 and 7.9 < drawn.max() <= 8.0
    assert told.told == ("guidance",)
    assert Denoiser(None, (conditioners.ScalarEmbedder(8),)).draw_told(KEY, 4) == {}
    for wrong in (dict(bounds=(2.0,)), dict(bounds=(2.0, 1.0)), dict(features=7)):
        with pytest.raises(errors.UsageError, match=next(iter(wrong))):
            conditioners.ScalarEmbedder(8, **wrong).check()


def test_what_reads_a_field_is_found_under_any_label():
    group = {"light": {"name": "image"}, "kind": {"name": "class", "num_classes": 7}}
    assert conditioners.label_of(group, "class") == "kind"
    assert conditioners.label_of(group, "low_res") == "light"
    assert conditioners.label_of(group, "text_ids") is None
    assert conditioners.num_classes(group) == 7
    assert conditioners.num_classes({"class": {"name": "image"}}) == 0


def test_denoising_a_ready_condition_is_the_whole_call(filled):
    model, batch = _denoiser(ClassEmbedder(10, 6)), {"class": jnp.array([3, 7])}
    params = filled(model, X, T, batch, KEEP)
    assert set(params) == {"unet", "conditioners_0"}
    apply = jax.jit(model.apply, static_argnames="method")
    cond = apply({"params": params}, batch, KEEP, method="condition")
    whole = apply({"params": params}, X, T, batch, KEEP)
    np.testing.assert_allclose(
        apply({"params": params}, X, T, cond, method="denoise"), whole, atol=1e-5
    )
    assert not np.allclose(apply({"params": params}, X, T, batch, DROP), whole, atol=1e-4)
    assert model.fields == ("class",)


def test_without_conditioners_the_denoiser_is_unconditional():
    shapes = jax.eval_shape(lambda: _denoiser().init(KEY, X, T))["params"]
    assert set(shapes) == {"unet"}


IMAGE, LATENT = (2, 16, 16, 3), (2, 8, 8, 3)
TINY = dict(width=6, depth=1, heads=2, head_width=4)
KINDS = {
    "class": dict(num_classes=5, width=6),
    "text": dict(vocab_size=20, length=7, null=(5, 6), **TINY),
    "layout": dict(vocab_size=20, length=7, pad=19, **TINY),
    "tokens": dict(length=7, width=6),
    "clip": dict(vocab_size=20, length=7, width=6, depth=1, heads=2, start=18, end=19, pad=19),
    "rescaler": dict(stages=1, classes=5, channels=2),
    "image": dict(),
    "inpaint": dict(),
    "scalar": dict(width=8),
    "control": dict(width=8, widths=(2, 4)),
}
# scalar has no null, see above; that of control counts its picture zero times (test_control.py).
OTHER = {"scalar", "control"}


def _make(name):
    return conditioners.CONDITIONERS.get(name)(**KINDS[name])


def _random(example):
    """Fields like these with other values; ids stay below 5, the mask is one."""
    rng = np.random.default_rng(0)

    def fill(field, x):
        if jnp.issubdtype(x.dtype, jnp.integer) or field == "mask":
            return rng.integers(0, 2 if field == "mask" else 5, x.shape).astype(x.dtype)
        return rng.normal(size=x.shape).astype(x.dtype)

    return {field: fill(field, x) for field, x in example.items()}


def test_every_registered_conditioner_is_tested_here():
    assert conditioners.CONDITIONERS.names() == sorted(KINDS)


@pytest.mark.parametrize("name", sorted(KINDS.keys() - OTHER))
def test_a_dropped_row_forgets_its_condition_and_a_kept_one_does_not(name, filled):
    conditioner = _make(name)
    example = conditioner.example(IMAGE, LATENT)
    assert set(example) == set(conditioner.fields)
    shapes = jax.eval_shape(lambda: conditioner.init(KEY, example, KEEP))
    params = {"params": filled(conditioner, example, KEEP)} if "params" in shapes else {}
    if "frozen" in shapes:
        rng = np.random.default_rng(0)
        fill = lambda x: rng.normal(size=x.shape).astype(x.dtype)
        params["frozen"] = jax.tree.map(fill, shapes["frozen"])
    apply = jax.jit(lambda batch, drop: conditioner.apply(params, batch, drop))
    null, dropped = apply(example, DROP), apply(_random(example), DROP)
    jax.tree.map(np.testing.assert_array_equal, null, dropped)
    kept, half = apply(_random(example), KEEP), apply(_random(example), jnp.array([False, True]))
    parts = list(zip(jax.tree.leaves(null), jax.tree.leaves(kept), jax.tree.leaves(half)))
    assert any(not np.allclose(a, b) for a, b, _ in parts)
    for a, b, c in parts:
        np.testing.assert_array_equal(c[0], b[0])
        np.testing.assert_array_equal(c[1], a[1])


@pytest.mark.parametrize("name", KINDS)
def test_the_denoiser_takes_what_each_conditioner_says(name):
    model = _denoiser(_make(name))
    example = model.example(IMAGE, LATENT)
    shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros(LATENT), T, example))["params"]
    more = {"rescaler": 2, "image": 3, "inpaint": 4}.get(name, 0)
    assert shapes["unet"]["conv_in"]["kernel"].shape[2] == 3 + more


def test_tokens_and_channels_combine():
    model = _denoiser(_make("text"), _make("layout"), _make("rescaler"))
    assert model.fields == ("text_ids", "layout_ids", "segmentation")
    example = model.example(IMAGE, LATENT)

    def condition():
        params = model.init(KEY, jnp.zeros(LATENT), T, example)
        return model.apply(params, example, KEEP, method="condition")

    cond = jax.eval_shape(condition)
    assert cond.tokens.shape == (2, 14, 6) and cond.mask.shape == (2, 14)
    assert cond.concat.shape == (2, 8, 8, 2)


@pytest.fixture(scope="module")
def text(filled):
    """text(ids, drop, mask_padding) of one random transformer."""

    example = _make("text").example(IMAGE, LATENT)
    params = {"params": filled(_make("text"), example, KEEP)}

    def run(ids, drop=False, **changes):
        apply = jax.jit(_make("text").clone(**changes).apply)
        return apply(params, {"text_ids": jnp.array([ids])}, jnp.array([drop]))

    return run


def test_a_dropped_caption_is_the_empty_one(text):
    jax.tree.map(
        np.testing.assert_array_equal,
        text([9, 8, 7, 6, 5, 4, 3], drop=True),
        text([5, 6, 0, 0, 0, 0, 0]),
    )


def test_embeddings_that_start_large_tell_words_apart():
    """Otherwise what the first layers add, which is alike for all words, drowns them."""
    ids, cosine = {"text_ids": jnp.array([[9, 8, 7, 6, 5]])}, {}
    for std in (0.02, 1.0):
        model = _make("text").clone(table_std=std, depth=2)
        params = jax.jit(model.init)(jax.random.key(0), ids, KEEP[:1])
        rows = jax.jit(model.apply)(params, ids, KEEP[:1]).tokens[0]
        rows /= jnp.linalg.norm(rows, axis=1, keepdims=True)
        cosine[std] = float(jnp.mean((rows @ rows.T)[jnp.triu_indices(5, 1)]))
    assert abs(cosine[1.0]) < 0.5 < cosine[0.02]


def test_padding_is_not_seen(text):
    long, short = text([9, 8, 7, 0, 0, 0, 0]), text([9, 8, 7])
    np.testing.assert_array_equal(long.mask, [[1, 1, 1, 0, 0, 0, 0]])
    np.testing.assert_allclose(long.tokens[:, :3], short.tokens, atol=1e-5)


def test_official_checkpoints_see_padding(text):
    long = text([9, 8, 7, 0, 0, 0, 0], mask_padding=False)
    assert long.mask is None
    short = text([9, 8, 7], mask_padding=False)
    assert not np.allclose(long.tokens[:, :3], short.tokens, atol=1e-3)


def test_an_empty_row_has_one_token_and_stays_finite(text):
    empty = text([0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(empty.mask, [[1, 0, 0, 0, 0, 0, 0]])
    assert np.isfinite(empty.tokens).all()


def test_a_vector_of_the_tokens_is_the_mean_of_those_that_count(filled):
    ids = {"text_ids": jnp.array([[9, 8, 7, 0, 0, 0, 0]])}
    short = {"text_ids": jnp.array([[9, 8, 7]])}
    model, keep = _make("text").clone(vector=12), jnp.array([False])
    params = {"params": filled(model, ids, keep)}
    long = model.apply(params, ids, keep)
    assert long.vector.shape == (1, 12)
    np.testing.assert_allclose(long.vector, model.apply(params, short, keep).vector, atol=1e-5)
    null = model.apply(params, ids, jnp.array([True]))
    assert not np.allclose(long.vector, null.vector, atol=1e-3)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(pad=20), "pad=20.*vocab_size=20"),
        (dict(null=(1, 20)), "null=.*vocab_size=20"),
        (dict(null=(-1,)), "null=.*vocab_size=20"),
        (dict(null=(1,) * 8), "length=7"),
    ],
)
def test_null_ids_that_the_table_lacks_are_refused(text, changes, message):
    with pytest.raises(errors.UsageError, match=message):
        text([1, 2, 3], **changes)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("class", dict(place="nowhere"), "place=nowhere must be"),
        ("text", dict(table_std=0.0), "table_std=0.0 must be a number above 0"),
        ("layout", dict(pad=20), "vocab_size=20"),
        ("rescaler", dict(method="cubic"), "'nearest'"),
        ("clip", dict(weights=""), "weights is empty.*hf:openai"),
        ("clip", dict(weights="file", activation="gleu"), "'gelu'"),
        ("clip", dict(weights="file", pad=60_000), "pad=60000.*vocab_size"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_computed(name, changes, message):
    with pytest.raises(errors.UsageError, match=message):
        values.check_fields(_make(name).clone(**changes))
        _make(name).clone(**changes).check()
    _make(name).clone(**{"weights": "file"} if name == "clip" else {}).check()


LABELS = np.random.default_rng(1).integers(0, 5, (2, 6, 10))


def _rescale(x, **changes):
    rescaler = conditioners.SpatialRescaler(**(dict(stages=1, classes=5, channels=0) | changes))
    return rescaler.apply({}, {"segmentation": jnp.asarray(x)}, KEEP).concat


def test_labels_are_shares_of_each_square():
    one_hot = np.eye(5, dtype=np.float32)[LABELS]
    shares = one_hot.reshape(2, 3, 2, 5, 2, 5).mean((2, 4))
    np.testing.assert_allclose(_rescale(LABELS), shares, atol=1e-6)
    np.testing.assert_allclose(_rescale(one_hot, method="area"), shares, atol=1e-6)
    np.testing.assert_array_equal(_rescale(LABELS, method="nearest"), one_hot[:, ::2, ::2])


def test_a_label_out_of_range_is_none_of_the_classes():
    for label in (5, -1, 255):
        np.testing.assert_array_equal(_rescale(np.full((2, 2, 2), label)), 0)


def test_odd_sizes_lose_a_row_as_in_torch():
    assert _rescale(LABELS, stages=2).shape == (2, 1, 2, 5)
    with pytest.raises(ValueError, match="even"):
        _rescale(LABELS, stages=2, method="area")


def test_the_inpainting_mask_comes_down_to_the_latents():
    mask = np.zeros((2, 4, 4, 1), np.float32)
    mask[:, 2:] = 1.0
    batch = {"masked_latents": jnp.ones((2, 2, 2, 3)), "mask": mask}
    concat = conditioners.Inpainting().apply({}, batch, jnp.array([False, True])).concat
    np.testing.assert_array_equal(concat[0, :, :, :3], 1)
    np.testing.assert_array_equal(concat[0, :, :, 3], [[-1, -1], [1, 1]])
    np.testing.assert_array_equal(concat[1, :, :, :3], 0)
    np.testing.assert_array_equal(concat[1, :, :, 3], 1)
    with pytest.raises(ValueError, match="does not fit"):
        bad = batch | {"mask": mask[:, :3]}
        conditioners.Inpainting().apply({}, bad, KEEP)
