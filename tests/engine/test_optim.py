import io
import lzma
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldm_jax.base import errors
from ldm_jax.engine import optim

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden"


def test_warmup_climbs_linearly_and_reaches_the_peak_at_its_last_step():
    lr = optim.make_schedule(1e-3, schedule="constant", warmup=4, total=100)
    np.testing.assert_allclose(
        [lr(step) for step in range(6)], np.float32([0.25, 0.5, 0.75, 1, 1, 1]) * 1e-3, rtol=1e-6
    )


@pytest.mark.parametrize("warmup", [0, 10, 20])
def test_cosine_goes_from_the_peak_to_zero_at_the_end(warmup):
    lr = optim.make_schedule(2.0, schedule="cosine", warmup=warmup, total=100)
    assert float(lr(warmup)) == pytest.approx(2.0)
    assert float(lr((warmup + 100) // 2)) == pytest.approx(1.0)
    assert float(lr(100)) == pytest.approx(0.0, abs=1e-6)


def test_linear_and_constant():
    lr = optim.make_schedule(2.0, schedule="linear", warmup=0, total=10)
    np.testing.assert_allclose([lr(0), lr(5), lr(10)], [2.0, 1.0, 0.0])
    assert optim.make_schedule(2.0, schedule="constant", warmup=0, total=10)(7) == 2.0


def test_the_inverse_square_root_falls_by_half_in_four_times_the_steps():
    how = dict(schedule="inverse_sqrt", warmup=10, length=110, total=10_000)
    lr = optim.make_schedule(3.0, **how)
    np.testing.assert_allclose([lr(0), lr(10), lr(110), lr(410)], [0.3, 3.0, 3.0, 1.5], rtol=1e-6)
    assert float(optim.make_schedule(3.0, floor=0.2, **how)(10_000)) == pytest.approx(0.6)


OFFICIAL = {  # LambdaWarmUpCosine and LambdaLinear, as the yamls set them
    "cosine_inpaint": dict(
        lr=0.1, schedule="cosine", warmup=1000, start=0.01, floor=0.001, length=50_000
    ),
    "linear_churches": dict(lr=1.0, schedule="constant", warmup=10_000, start=1e-6),
    # the first of two cycles; we have no second
    "cosine2": dict(lr=1.0, schedule="cosine", warmup=100, start=1e-6, floor=0.1, length=30_000),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_official_schedules_are_reproduced(name):
    packed = lzma.decompress((GOLDEN / "compvis" / "lr_schedules.npz.xz").read_bytes())
    golden = np.load(io.BytesIO(packed))
    kwargs = OFFICIAL[name] | dict(total=100_000)
    lr = optim.make_schedule(**kwargs)
    steps = golden["n"][golden["n"] <= (kwargs["length"] if name == "cosine2" else 100_000)]
    ours = [float(lr(step)) for step in steps]
    np.testing.assert_allclose(ours, golden[name][: len(steps)], rtol=2e-5, atol=1e-7)


def make(total=10, lr=0.1, **settings):
    return optim.make({"lr": lr} | settings, total)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"name": "adan"}, "did you mean 'adam'"),
        ({"average": "emma"}, "did you mean 'ema'"),
        ({"warmup": 11}, "warmup=11 is longer"),
        ({"schedule": "inverse_sqrt"}, "'inverse_sqrt' needs length"),
        ({"floor": 0.1}, "floor=0.1 does nothing with learning-rate schedule 'constant'"),
        ({"warmup": 5, "length": 4}, "length=4 of the decay"),
        (
            {"name": "adam", "weight_decay": 0.1},
            "weight_decay=0.1 does .* 'adam', only with adamw",
        ),
        ({"weight_decays": 0.1}, "did you mean 'weight_decay'"),
        ({"mu_dtype": "float16"}, "use 'bfloat16'"),
    ],
)
def test_names_and_numbers_that_do_not_exist_are_refused(settings, words):
    with pytest.raises(errors.UsageError, match=words):
        make(**settings)


@pytest.fixture
def descent(monkeypatch):
    """An optimizer of one's own, as a plugin registers it."""
    monkeypatch.setattr(optim.OPTIMIZERS, "_entries", dict(optim.OPTIMIZERS._entries))

    @optim.OPTIMIZERS.register("descent")
    def descent(rate, momentum=0.0):
        return optax.sgd(rate, momentum)


def test_an_optimizer_is_one_function_with_options_of_its_own(descent):
    of_the_config = dict(b1=0.9, b2=0.999, mu_dtype="", weight_decay=0.0)
    own, grads = make(name="descent", momentum=0.5, **of_the_config), {"w": jnp.ones(2)}
    first, state = own.tx.update(grads, own.tx.init(grads))
    second, _ = own.tx.update(grads, state)
    np.testing.assert_allclose([first["w"][0], second["w"][0]], [-0.1, -0.15], rtol=1e-6)
    assert make(momentum=0.0).tx, "Adam in a config that has the other's key, at its default"
    with pytest.raises(errors.UsageError, match=r"momentum=0.5 does .*'adamw', only with descent"):
        make(momentum=0.5)
    with pytest.raises(errors.UsageError, match=r"b1=0.5 does nothing with optimizer 'descent'"):
        make(name="descent", b1=0.5)


def test_the_first_adam_step_moves_by_the_learning_rate():
    tx, lr, *_ = make(warmup=2, name="adam")
    grads = {"w": jnp.array([3.0, -2.0])}
    updates, _ = tx.update(grads, tx.init(grads), grads)
    np.testing.assert_allclose(updates["w"], [-lr(0), lr(0)], rtol=1e-5)


def test_decay_spares_norms_and_biases():
    tx, *_ = make(weight_decay=0.5)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05)
    np.testing.assert_array_equal(updates["bias"], 0)


def test_clipping_acts_on_the_global_norm():
    grads = {"a": jnp.full((4,), 3.0), "b": jnp.full((4,), 4.0)}  # norm 10
    clip = optax.clip_by_global_norm(1.0)
    clipped, _ = clip.update(grads, clip.init(grads))
    tx, plain = make(clip=1.0).tx, make().tx
    expected, _ = plain.update(clipped, plain.init(grads), grads)
    updates, _ = tx.update(grads, tx.init(grads), grads)
    np.testing.assert_allclose(updates["a"], expected["a"])


@pytest.mark.parametrize("decay", [0.9, 0.9999])
def test_ema_is_the_recurrence_of_lit_ema(decay):
    rng = np.random.default_rng(0)
    ema = expected = rng.normal(size=3).astype(np.float32)
    update = optim.make({"lr": 0.1, "ema": decay}, 10).average
    for step in range(200):
        p = rng.normal(size=3).astype(np.float32)
        ema = update(ema, p, jnp.int32(step))
        keep = min(decay, (1 + step + 1) / (10 + step + 1))
        expected = keep * expected + (1 - keep) * p
    np.testing.assert_allclose(ema, expected, rtol=2e-5, atol=1e-6)


def test_inherited_weights_are_not_forgotten_and_without_a_decay_there_is_no_average():
    average = optim.make({"lr": 0.1, "ema": 0.9}, 10, ema_warmup=False).average
    assert float(average(jnp.float32(1), jnp.float32(0), jnp.int32(0))) == pytest.approx(0.9)
    assert make().average is None


def test_an_average_of_ones_own_has_options_of_its_own(monkeypatch):
    def late(decay, warmup=True, since: int = 8):
        return lambda average, params, step: jnp.where(step < since, params, average)

    monkeypatch.setitem(optim.AVERAGES._entries, "late", late)
    settings = {"lr": 0.1, "ema": 0.5, "average": "late"}
    update = optim.make(settings | {"since": 2}, 10).average
    assert [float(update(0.0, 1.0, step)) for step in (1, 2)] == [1.0, 0.0]
    with pytest.raises(errors.UsageError, match="since=2 does nothing with average of the weights"):
        optim.make(settings | {"average": "ema", "since": 2}, 10)


def test_muon_turns_kernels_alike_in_all_directions_and_leaves_the_rest_to_adam():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    params = {"conv": {"kernel": draw(3, 3, 4, 8), "bias": draw(8)}, "table": draw(5, 4)}
    # A gradient that is nearly of rank one, as sums over a batch are.
    steep = 10 * jnp.outer(draw(36), draw(8)).reshape(3, 3, 4, 8)
    grads = params | {"conv": params["conv"] | {"kernel": params["conv"]["kernel"] + steep}}
    update = lambda tx: tx.update(grads, tx.init(params), params)[0]
    ours = update(make(lr=0.01, name="muon", adam_share=0.5).tx)
    theirs = update(optax.adam(0.005, nesterov=True))

    def spread(tree):
        singular = np.linalg.svd(tree["conv"]["kernel"].reshape(36, 8), compute_uv=False)
        return singular[0] / singular[-1]

    assert spread(ours) < 3 < 20 < spread(grads)
    np.testing.assert_allclose(ours["conv"]["bias"], theirs["conv"]["bias"], rtol=1e-5)
    np.testing.assert_allclose(ours["table"], theirs["table"], rtol=1e-5)
