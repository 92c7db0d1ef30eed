import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.base import config as config_lib
from ldm_jax.base import errors
from ldm_jax.models import bottleneck, shortcut
from ldm_jax.runs import kinds
from ldm_jax.stages import adversary, autoencode

DEBUG = pathlib.Path(__file__).resolve().parents[2] / "configs" / "debug.py"
KEY = jax.random.key(7)
DISC_START = 5


def make(variant, **loss):
    config = config_lib.load(f"{DEBUG}:{variant}")
    config.data.size = 8
    config.model.mult = (1,)  # f = 1: fewer layers to compile, the same losses
    config.loss.update(disc_start=DISC_START, kl_weight=1e-3, logvar=0.3)
    config.loss.update(loss)
    return kinds.of(config).model(config)


class Case:
    """One first stage with its parameters, and its losses compiled once."""

    def __init__(self, stage, fill, images):
        self.stage, self.batch = stage, {"image": images}
        self.params = {
            "autoencoder": fill(stage.init_autoencoder),
            "discriminator": fill(stage.init_discriminator),
        }
        self.apply = jax.jit(stage.model.apply, static_argnames="method")
        self._losses = {
            "autoencoder": self._compile(stage.autoencoder_loss),
            "discriminator": self._compile(stage.discriminator_loss),
        }

    def _compile(self, loss):
        player = loss.__name__.removesuffix("_loss")

        def differentiated(own, params, batch, step, shared):
            return loss(params | {player: own}, {}, batch, KEY, step, shared)

        return jax.jit(jax.value_and_grad(differentiated, has_aux=True))

    def run(self, player, step, shared=None, **params):
        """(loss, metrics, shared, gradient of the player's own parameters)."""
        params = self.params | params
        (loss, (metrics, shared)), grads = self._losses[player](
            params[player], params, self.batch, jnp.int32(step), shared or {}
        )
        return float(loss), metrics, shared, grads


@pytest.fixture(scope="module")
def kl(fill, images):
    return Case(make("first_stage"), fill, images)


@pytest.fixture(scope="module")
def vq(fill, images):
    return Case(make("vq", disc_weight=0.0), fill, images)


def test_kl_sums_over_an_image_and_divides_by_the_batch(kl, images):
    loss, metrics, shared, _ = kl.run("autoencoder", 0)
    b = len(images)
    error = np.abs(images - np.asarray(shared["x_hat"]), dtype=np.float64)
    nll = (error / np.exp(0.3) + 0.3).sum() / b
    moments = kl.apply({"params": kl.params["autoencoder"]["model"]}, images, method="encode")
    mean, logvar = np.split(np.asarray(moments, np.float64), 2, axis=-1)
    divergence = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).sum() / b
    assert float(metrics["nll"]) == pytest.approx(nll, rel=1e-5)
    assert float(metrics["kl"]) == pytest.approx(divergence, rel=1e-4)
    assert loss == pytest.approx(nll + 1e-3 * divergence, rel=1e-5)
    assert float(metrics["l1"]) == pytest.approx(error.mean(), rel=1e-5)


def test_vq_takes_means(vq, images):
    loss, metrics, shared, grads = vq.run("autoencoder", 0)
    own = vq.params["autoencoder"]["model"]
    z = vq.apply({"params": own}, images, method="encode")
    z_q, _ = bottleneck.quantise(own["codebook"], z)
    difference = np.mean((np.asarray(z_q, np.float64) - np.asarray(z)) ** 2)
    nll = np.mean(np.abs(images - np.asarray(shared["x_hat"]), dtype=np.float64))
    assert float(metrics["vq"]) == pytest.approx(1.25 * difference, rel=1e-4)
    assert loss == pytest.approx(nll + 1.25 * difference, rel=1e-5)
    decoded = vq.apply({"params": own}, z, method="decode")
    np.testing.assert_allclose(shared["x_hat"], decoded, atol=1e-4)
    reached = {k: float(jnp.abs(g).sum()) for k, g in grads["model"]["encoder"]["conv_in"].items()}
    assert min(reached.values()) > 0, "gradients pass the codebook straight through"
    assert float(jnp.abs(grads["model"]["codebook"]).sum()) > 0


def test_a_term_of_ones_own_is_added_by_its_weight_and_logged(kl, monkeypatch):
    monkeypatch.setattr(autoencode.TERMS, "_entries", {})
    autoencode.TERMS.register("late")(lambda x, x_hat, step: step * jnp.mean(x * x_hat))
    loss = dataclasses.replace(kl.stage.loss, terms={"late": 1e4}, disc_weight=0.0)
    autoencode.check(loss, has_lpips=False)
    stage = dataclasses.replace(kl.stage, loss=loss)

    @jax.jit
    def run(own, step):
        bare = dataclasses.replace(stage, loss=dataclasses.replace(loss, terms={}))
        args = ({"autoencoder": own}, {}, kl.batch, KEY, step, {})
        return stage.autoencoder_loss(*args), bare.autoencoder_loss(*args)

    (total, (metrics, shared)), (bare, (plain, _)) = run(kl.params["autoencoder"], jnp.int32(3))
    term = 3 * np.mean(kl.batch["image"] * np.asarray(shared["x_hat"]))
    assert float(metrics["term_late"]) == pytest.approx(term, rel=1e-4)
    assert float(total - bare) == pytest.approx(1e4 * term, rel=1e-3)
    assert metrics.keys() - plain.keys() == {"term_late"}
    with pytest.raises(errors.UsageError, match="loss term 'early'"):
        autoencode.check(dataclasses.replace(loss, terms={"early": 1.0}), has_lpips=False)


def test_the_adversary_rests_exactly_until_its_start(kl):
    other = jax.tree.map(lambda p: p * 1.5, kl.params["discriminator"])
    loss, metrics, shared, grads = kl.run("autoencoder", DISC_START - 1)
    other_loss, _, _, other_grads = kl.run("autoencoder", DISC_START - 1, discriminator=other)
    assert loss == other_loss and float(metrics["adaptive_weight"]) == 0
    jax.tree.map(np.testing.assert_array_equal, grads, other_grads)
    loss, _, _, grads = kl.run("discriminator", DISC_START - 1, shared)
    assert loss == 0
    assert all(not np.any(g) for g in jax.tree.leaves(grads))


def test_the_adversary_acts_from_its_start_on(kl):
    before, _, shared, grads = kl.run("autoencoder", DISC_START - 1)
    loss, after, _, moved = kl.run("autoencoder", DISC_START)
    weight = float(after["adaptive_weight"])
    assert weight > 0
    expected = before + 0.5 * weight * float(after["adversarial"])
    assert loss == pytest.approx(expected, rel=1e-5)
    kernel = lambda g: g["model"]["decoder"]["conv_out"]["kernel"]
    assert np.any(kernel(grads) != kernel(moved))
    loss, _, _, grads = kl.run("discriminator", DISC_START, shared)
    assert loss > 0 and all(np.any(g) for g in jax.tree.leaves(grads))


def test_the_discriminator_loss_is_the_hinge_on_real_and_reconstructed(kl, images):
    _, _, shared, _ = kl.run("autoencoder", DISC_START)
    loss, metrics, _, _ = kl.run("discriminator", DISC_START, shared)
    judge = jax.jit(kl.stage.discriminator.apply)
    logits = lambda x: np.asarray(judge({"params": kl.params["discriminator"]}, x), np.float64)
    real, fake = logits(images), logits(shared["x_hat"])
    hinge = 0.5 * (np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean())
    assert loss == pytest.approx(hinge, rel=1e-5)
    assert float(metrics["logits_fake"]) == pytest.approx(fake.mean(), rel=1e-3, abs=1e-5)


def test_the_adaptive_weight_is_that_of_gradients_through_the_whole_decoder(kl, images):
    """Esser et al. 2021, eq. 7, by brute force: each loss differentiated in conv_out's kernel."""
    stage, own = kl.stage, kl.params["autoencoder"]
    kernel = own["model"]["decoder"]["conv_out"]["kernel"]

    @jax.jit
    def norms(kernel, images):
        def reconstruct(kernel):
            decoder = own["model"]["decoder"]
            decoder = decoder | {"conv_out": decoder["conv_out"] | {"kernel": kernel}}
            bound = {"params": own["model"] | {"decoder": decoder}}
            moments = stage.model.apply(bound, images, method="encode")
            z = bottleneck.BOTTLENECKS.get("kl").sample(jax.random.split(KEY)[0], moments)
            return stage.model.apply(bound, z, method="decode")

        def nll(kernel):
            error = jnp.abs(images - reconstruct(kernel))
            return jnp.sum(error / jnp.exp(0.3) + 0.3) / len(images)

        def adversarial(kernel):
            bound = {"params": kl.params["discriminator"]}
            return -jnp.mean(stage.discriminator.apply(bound, reconstruct(kernel)))

        return [jnp.linalg.norm(jax.grad(loss)(kernel)) for loss in (nll, adversarial)]

    nll_norm, adversarial_norm = (float(n) for n in norms(kernel, images))
    _, metrics, _, _ = kl.run("autoencoder", DISC_START)
    expected = min(nll_norm / (adversarial_norm + 1e-4), 1e4)
    assert 0 < expected < 1e4, "a weight at the clip would prove nothing"
    assert float(metrics["adaptive_weight"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("side", [1, 2])  # pixels of one of the convolution's positions
def test_the_adaptive_weight_sees_what_turns_the_convolution_into_the_image(images, side):
    rng, hw = np.random.default_rng(0), 8 // side
    features, kernel = rng.normal(size=(4, hw, hw, 2)), rng.normal(size=(3, 3, 2, 3 * side**2)) / 10
    features, kernel = jnp.float32(features), jnp.float32(kernel)
    layout = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"))
    convolve = lambda k: jax.lax.conv_general_dilated(features, k, (1, 1), "SAME", **layout)
    render = lambda kernel: jnp.tanh(shortcut.images(convolve(kernel), side))
    nll = lambda x: jnp.sum((x - images[:, :8, :8]) ** 2)
    judge = lambda x: jnp.mean(x**3)
    norms = [
        jnp.linalg.norm(jax.grad(lambda k, loss=loss: loss(render(k)))(kernel))
        for loss in (nll, judge)
    ]
    x_hat = render(kernel)
    found = adversary.adaptive_weight(nll, judge, x_hat, features, kernel, 1 - x_hat**2)
    assert float(found) == pytest.approx(float(norms[0] / (norms[1] + 1e-4)), rel=1e-4)


def test_the_adaptive_weight_of_bfloat16_features_copies_none_to_float32(images):
    rng = np.random.default_rng(0)
    features, kernel = jnp.float32(rng.normal(size=(4, 8, 8, 16))), jnp.ones((3, 3, 16, 3))
    nll, judge = (lambda x: jnp.sum(jnp.abs(x - 0.1))), (lambda x: jnp.mean(x**3))
    weigh = lambda features: adversary.adaptive_weight(
        nll, judge, images[:, :8, :8], features, kernel
    )
    halves = features.astype(jnp.bfloat16)
    assert float(weigh(halves)) == pytest.approx(float(weigh(features)), rel=5e-3)
    assert "f32[4,8,8,16]" not in str(jax.make_jaxpr(weigh)(halves))


def test_the_adaptive_weight_is_clipped_and_free_of_gradients(images):
    features, kernel = jnp.ones((4, 8, 8, 2)), jnp.ones((3, 3, 2, 3))
    flat = lambda x: 0.0 * x.sum()
    weigh = lambda nll, x: adversary.adaptive_weight(nll, flat, x, features, kernel)
    assert float(weigh(lambda x: (x**2).sum(), images)) == 1e4
    assert float(weigh(flat, images)) == 0
    gradient = jax.grad(lambda x: weigh(lambda y: 1e-4 * (y**2).sum(), x))(images)
    assert not np.any(gradient)


@pytest.mark.parametrize("name", ["hinge", "vanilla"])
def test_discriminator_losses_fall_as_the_logits_part(name):
    loss = adversary.DISCRIMINATOR_LOSSES.get(name)
    at = lambda gap: float(loss(jnp.full((2, 3), gap / 2), jnp.full((2, 3), -gap / 2)))
    assert at(-2) > at(0) > at(1)
    assert at(0) == pytest.approx({"hinge": 1.0, "vanilla": np.log(2)}[name])


def test_a_learned_log_variance_is_a_parameter_with_a_gradient(fill, images, kl):
    stage = make("first_stage", learn_logvar=True)
    assert kl.stage.init_autoencoder.__self__.loss.learn_logvar is False
    assert "logvar" not in kl.params["autoencoder"]
    own = {"logvar": jnp.float32(0.0)}
    nll = lambda own: stage._nll(own, {}, images, images * 0.5, KEY)
    error = np.abs(images * 0.5)
    expected = (1 - error).sum() / len(images)  # d/ds sum(error exp(-s) + s) at s = 0
    assert float(jax.grad(nll)(own)["logvar"]) == pytest.approx(expected, rel=1e-4)


def test_lpips_without_weights_says_where_to_get_them():
    loss = autoencode.Loss(**config_lib.load(f"{DEBUG}:first_stage").loss)
    autoencode.check(loss, has_lpips=False)
    wanted = dataclasses.replace(loss, perceptual_weight=1.0)
    autoencode.check(wanted, has_lpips=True)
    with pytest.raises(errors.UsageError) as caught:
        autoencode.check(wanted, has_lpips=False)
    message = str(caught.value)
    assert "\n" not in message
    for word in ("lpips.backbone", "lpips.heads", "vgg16-397923af.pth", "vgg.pth"):
        assert word in message


def test_the_perceptual_distance_is_added_to_every_pixel(kl, images):
    """With a stand-in distance of 2: nll grows by 2 * weight / exp(logvar) for each number."""
    loss = dataclasses.replace(kl.stage.loss, perceptual_weight=0.5)
    perceive = lambda weights, x, y: jnp.full(len(x), 2.0)
    with_lpips = dataclasses.replace(kl.stage, loss=loss, perceive=perceive)
    nll = lambda stage: float(stage._nll({}, {"lpips": None}, images, images * 0.5, KEY))
    each = images[0].size / np.exp(0.3)
    assert nll(with_lpips) - nll(kl.stage) == pytest.approx(each, rel=1e-4)


def test_evaluation_has_one_value_an_image_and_drawing_pairs_them(kl, images):
    score = lambda x, x_hat: jnp.max(jnp.abs(x_hat), axis=(1, 2, 3))
    stage = dataclasses.replace(kl.stage, scores={"peak": score})
    both = jax.jit(lambda *args: (stage.evaluate(*args), stage.draw(*args)))
    values, drawn = both(kl.params, {}, kl.batch, KEY)
    assert set(values) == {"peak", "l1"} and {v.shape for v in values.values()} == {(4,)}
    assert float(values["peak"].max()) <= 1, "scores see clipped reconstructions"
    drawn = drawn["reconstructions"]
    assert drawn.shape == (8, 8, 8, 3)
    np.testing.assert_array_equal(drawn[:4], images)
