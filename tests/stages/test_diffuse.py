import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.base import config as config_lib
from ldm_jax.base import errors
from ldm_jax.base.errors import UsageError
from ldm_jax.diffusion.process import make_process
from ldm_jax.models import conditioners
from ldm_jax.runs import kinds
from ldm_jax.stages import diffuse, kept
from ldm_jax.stages.codec import Codec

DEBUG = pathlib.Path(__file__).resolve().parents[2] / "configs" / "debug.py"
CLASSES, SCALE = 4, 0.7
FROZEN = {"first_stage": {}, "scale": jnp.float32(SCALE)}
KEY = jax.random.key(3)
IDS = jnp.array([0, 1, 2, 3], jnp.int32)


def make(**loss):
    """The second stage of configs/debug.py on pixels (f = 1), four classes, without attention."""
    config = config_lib.load(f"{DEBUG}:ldm", {"first_stage": "identity"})
    config.data.size = 8
    config.model.mult = (1,)
    config.model.attention = ()
    config.conditioners["class"].num_classes = CLASSES
    config.loss.update(loss)
    return kinds.of(config).model(config)


@pytest.fixture(scope="module")
def stage():
    return make()


@pytest.fixture(scope="module")
def params(stage, fill):
    return {"denoiser": fill(stage.init)}


@pytest.fixture(scope="module")
def loss_without_dropout():
    return jax.jit(make(cond_dropout=0.0).denoiser_loss)


def losses(loss, params, images):
    """Of two batches that differ in their classes alone."""
    return [
        float(loss(params, FROZEN, {"image": images, "class": ids}, KEY, 0, {})[0])
        for ids in (IDS, IDS[::-1])
    ]


def test_with_full_condition_dropout_the_class_does_not_matter(params, images):
    a, b = losses(jax.jit(make(cond_dropout=1.0).denoiser_loss), params, images)
    assert a == b


def test_without_condition_dropout_it_does(params, images, loss_without_dropout):
    a, b = losses(loss_without_dropout, params, images)
    assert a != b


def test_what_is_kept_and_the_null_pull_nothing_until_the_weights_move(params, images):
    plain, base = make(cond_dropout=0.0), {"base": params["denoiser"]}
    own = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    stage = kept.Kept(**own, part=1, weight=4.0)
    batch = {"image": images, "class": IDS}

    @jax.jit
    @jax.grad
    def gradient(params, part):
        return stage.denoiser_loss(params, FROZEN | base, batch | {"part": part}, KEY, 0, {})[0]

    def pull(*part):
        gradients = jax.tree.leaves(gradient(params, jnp.array(part)))
        return max(float(jnp.abs(x).max()) for x in gradients)

    assert pull(1, 1, 1, 1) < 1e-4 * pull(1, 1, 1, 0)
    null = jnp.array([[True], [False], [False]])
    np.testing.assert_array_equal(stage.counted({"part": jnp.array([0, 0, 1])}, null), [4, 1, 4])


def test_the_loss_is_the_error_of_the_target(stage, params, images, loss_without_dropout):
    """Recomputed from the parts: z, t, eps and the network's own output."""
    batch = {"image": images, "class": IDS}
    loss, (metrics, _) = loss_without_dropout(params, FROZEN, batch, KEY, 0, {})
    _, t_key, eps_key, _, _ = jax.random.split(KEY, 5)
    t = jax.random.randint(t_key, (4,), 0, stage.process.timesteps)
    eps = jax.random.normal(eps_key, images.shape)
    z = SCALE * images
    x_t = stage.process.corrupt(z, t, eps)
    cond = stage.condition(params["denoiser"], {"class": IDS}, jnp.zeros(4, bool))
    pred = jax.jit(stage.predict)(params["denoiser"], x_t, t, cond)
    error = float(np.mean(np.square(np.asarray(pred - stage.process.target(z, eps, t)))))
    assert float(loss) == pytest.approx(error, rel=1e-4)
    assert float(metrics["latent_std"]) == pytest.approx(np.std(z), rel=1e-4)


def test_the_bound_and_a_log_variance_join_the_loss(stage, params, images):
    """loss = mean(error / exp(s) + s + elbo_weight vlb error), s of each row's timestep."""
    t, eps = jnp.array([0, 1, 500, 999]), jnp.ones_like(images)
    args = SCALE * images, t, eps, {"class": IDS}, jnp.zeros(4, bool)
    ramp = jnp.linspace(-0.5, 0.7, stage.process.timesteps)
    learned = {"denoiser": params["denoiser"] | {"logvar": ramp}}
    terms = dataclasses.replace(stage.loss, elbo_weight=0.3, logvar=9.0)
    other = dataclasses.replace(stage, loss=terms)
    loss, error = jax.jit(other.loss_at)(learned, *args)
    vlb = stage.process.weight(t, "vlb")
    want = jnp.mean(error / jnp.exp(ramp[t]) + ramp[t] + 0.3 * vlb * error)
    assert float(loss) == pytest.approx(float(want), rel=1e-5)
    learn = dataclasses.replace(terms, learn_logvar=True)
    made = jax.eval_shape(dataclasses.replace(stage, loss=learn).init, KEY)
    assert made["logvar"].shape == ramp.shape


def test_a_smooth_log_variance_starts_as_the_fixed_one_and_joins_the_loss(stage, params, images):
    t, eps = jnp.array([0, 1, 500, 999]), jnp.ones_like(images)
    args = SCALE * images, t, eps, {"class": IDS}, jnp.zeros(4, bool)
    loss_of = lambda **terms: dataclasses.replace(
        stage, loss=dataclasses.replace(stage.loss, logvar=0.5, **terms)
    )
    other = loss_of(learn_logvar=True, logvar_features=8)
    made = jax.jit(other.init)(KEY)["logvar"]
    assert made.shape == (8,)
    own = lambda weights: {"denoiser": params["denoiser"] | {"logvar": weights}}
    fixed, error = jax.jit(loss_of().loss_at)(params, *args)
    assert float(jax.jit(other.loss_at)(own(made), *args)[0]) == pytest.approx(
        float(fixed), rel=1e-6
    )
    weights = jnp.linspace(-0.2, 0.3, 8)
    logvar = 0.5 + stage.process.features(8)[np.array(t)] @ np.array(weights)
    want = float(np.mean(error / np.exp(logvar) + logvar))
    assert float(jax.jit(other.loss_at)(own(weights), *args)[0]) == pytest.approx(want, rel=1e-5)
    with pytest.raises(
        UsageError, match="logvar_features=8 must be 0, or above 0 with learn_logvar"
    ):
        loss_of(logvar_features=8)


def test_features_of_the_noise_level_tell_timesteps_that_were_never_seen():
    process = make_process(schedule="rectified", prediction="v")
    curve = np.log(process.noise + 0.01)  # spans 4.6
    seen, table = np.arange(0, 1000, 10), process.features(128)
    weights = np.linalg.lstsq(table[seen], curve[seen], rcond=1e-6)[0]
    assert np.abs(table @ weights - curve)[50:950].max() < 0.02
    assert np.mean(table**2) == pytest.approx(1.0, abs=0.1)


@pytest.fixture(scope="module")
def sample(stage, params):
    """sample(numbers, ids, guidance): four images by their numbers."""

    def draw(keys, ids, guidance):
        sampling = dataclasses.replace(stage.sampling, guidance=guidance, eta=1.0, steps=3)
        own, size = params["denoiser"], dict(height=8, width=8)
        return stage.sample(own, FROZEN, keys, {"class": ids}, sampling=sampling, **size)

    compiled = jax.jit(draw, static_argnums=2)

    def by_number(numbers, ids, guidance=2.0):
        keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.asarray(numbers))
        return np.asarray(compiled(keys, jnp.asarray(ids, jnp.int32), guidance))

    return by_number


def test_an_image_does_not_depend_on_its_batch(sample):
    one = sample([0, 1, 2, 3], [0, 1, 2, 3])
    np.testing.assert_allclose(sample([9, 2, 7, 0], [3, 2, 1, 0])[[3, 1]], one[[0, 2]], atol=1e-5)
    assert np.abs(one[0] - sample([0, 1, 2, 3], [1, 1, 2, 3])[0]).max() > 1e-3, "its class counts"
    assert np.abs(sample([9, 2, 7, 0], [0, 2, 1, 0])[0] - one[0]).max() > 1e-2, "so does its key"


def test_guidance_one_is_plain_conditional_sampling(sample):
    """The guided formula a hair's breadth from scale 1 gives what the unguided path gives."""
    plain = sample([0, 1, 2, 3], IDS, 1.0)
    np.testing.assert_allclose(sample([0, 1, 2, 3], IDS, 1.0000001), plain, atol=1e-4)
    assert np.abs(sample([0, 1, 2, 3], IDS, 2.0) - plain).max() > 1e-3


@pytest.mark.parametrize("kind", ["uniform", "min_snr", "v", "flow", "vlb"])
@pytest.mark.parametrize("schedule", ["scaled_linear", "zero_terminal_snr", "rectified"])
def test_only_a_weight_that_leaves_pure_noise_untrained_is_refused(stage, schedule, kind):
    process = make_process(prediction="v", zero_terminal_snr=True)
    if schedule != "zero_terminal_snr":
        process = make_process(schedule=schedule, prediction="v")
    terms = dataclasses.replace(stage.loss, weight=kind)
    made = dataclasses.replace(stage, process=process, loss=terms)
    if kind == "min_snr" and process.signal[-1] == 0:
        with pytest.raises(UsageError, match=r"weight='min_snr' gives timestep 999 .* weight 0"):
            made.check()
    else:
        made.check()


@pytest.mark.parametrize("scaled", [False, True])
def test_masked_latents_have_the_denoisers_scale_where_it_is_asked_for(stage, images, scaled):
    hole = conditioners.Inpainting(scaled=scaled)
    made = dataclasses.replace(
        stage, denoiser=dataclasses.replace(stage.denoiser, conditioners=(hole,))
    )
    found = made.encode_fields(FROZEN, {"masked_image": images})["masked_latents"]
    np.testing.assert_allclose(found, (SCALE if scaled else 1.0) * images, rtol=1e-6)


def test_pixel_diffusion_trains(stage, params, images):
    """f = 1: the codec is the identity, and a few steps of descent lower the loss."""
    assert stage.codec.f == 1 and stage.latent_shape(8, 8) == (8, 8, 3)
    np.testing.assert_allclose(
        stage.decode(FROZEN, stage.encode(FROZEN, images)), images, rtol=1e-6
    )
    batch = {"image": images, "class": IDS}

    @jax.jit
    def descend(own):
        loss = lambda own: stage.denoiser_loss({"denoiser": own}, FROZEN, batch, KEY, 0, {})[0]
        value, grads = jax.value_and_grad(loss)(own)
        return value, jax.tree.map(lambda p, g: p - 0.02 * g, own, grads)

    own, history = params["denoiser"], []
    for _ in range(8):
        value, own = descend(own)
        history.append(float(value))
    assert history[-1] < 0.95 * history[0] and np.all(np.isfinite(history))


class Noisy(Codec):
    """Pixels, of which a sample is far off."""

    def __init__(self):
        super().__init__(None)

    def latents(self, moments, key=None):
        return moments if key is None else moments + 3 * jax.random.normal(key, moments.shape)


def test_evaluation_counts_the_posteriors_noise_as_training_does(stage, params, images):
    """Zeros for v have the error a^2 + s^2 var(z): greater by the noise of latents, at any time."""
    params = jax.tree.map(jnp.zeros_like, params)
    batch = {"image": jnp.zeros_like(images), "class": IDS}
    errors_of = lambda codec: jnp.mean(
        dataclasses.replace(stage, codec=codec).evaluate(params, FROZEN, batch, KEY)["error"]
    )
    assert float(errors_of(Noisy())) > 1.5 * float(errors_of(Codec(None)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(sampler="dimm"), "did you mean 'ddim'"),
        (dict(spacing="exakt"), "did you mean 'exact'"),
        (dict(steps=0), "steps=0"),
        (dict(steps=1001), "steps=1001"),
    ],
)
def test_sampling_settings_that_do_not_exist_are_refused(stage, changes, words):
    with pytest.raises(errors.UsageError, match=words):
        dataclasses.replace(stage.sampling, **changes).grid(stage.process)


def test_a_weaker_checkpoint_guides_and_an_interval_says_where(stage, params):
    own, weaker = params["denoiser"], jax.tree.map(lambda p: 0.9 * p, params["denoiser"])
    keys = jax.random.split(KEY, 4)

    @functools.partial(jax.jit, static_argnames=("guide", "interval"))
    def draw(weaker, *, guide=True, interval=()):
        return stage.sample(
            own,
            FROZEN | {"guide": weaker},
            keys,
            {"class": IDS},
            sampling=diffuse.Sampling(
                steps=3, guidance=2.0 if guide else 1.0, rescale=0.5, interval=interval
            ),
            height=8,
            width=8,
        )

    plain = draw(own, guide=False)
    np.testing.assert_allclose(draw(own), plain, atol=1e-4)  # nothing is weaker than itself
    assert np.abs(draw(weaker) - plain).max() > 1e-3
    np.testing.assert_allclose(draw(weaker, interval=(0.0, 0.0)), plain, atol=1e-5)


def test_sampling_counts_its_calls_and_refuses_what_means_nothing(stage):
    calls = {"ddim": 10, "heun": 19, "plms": 11, "unipc": 10}
    for name, count in calls.items():
        assert len(diffuse.Sampling(name, steps=10).method(stage.process)) == count
    for bad in ({"sampler": "dimm"}, {"spacing": "even"}, {"rescale": 2.0}, {"interval": (1, 0)}):
        with pytest.raises(errors.UsageError):
            diffuse.Sampling(**bad)


def test_settings_that_would_do_nothing_are_refused():
    for bad, words in [
        (dict(sampler="heun", eta=0.5), "eta=0.5 does nothing with sampler 'heun'"),
        (dict(rho=3.0), "rho=3.0 does nothing with time grid 'exact'"),
    ]:
        with pytest.raises(errors.UsageError, match=words):
            diffuse.Sampling(**bad)
    with pytest.raises(errors.UsageError, match=r"gamma=3.0 does nothing .* 'uniform'"):
        diffuse.Loss("l2", "uniform", 0.0, gamma=3.0)


def test_given_settings_go_over_a_runs_own_and_take_what_no_longer_fits_with_them():
    own = diffuse.Sampling(eta=1.0, spacing="karras", rho=5.0, guidance=3.0)
    assert own.over({"steps": 7}) == dataclasses.replace(own, steps=7)
    heun = own.over({"sampler": "heun"})
    assert (heun.eta, heun.rho, heun.guidance) == (0.0, 5.0, 3.0)
    assert own.over({"spacing": "exact"}).rho == 7.0
    with pytest.raises(errors.UsageError, match=r"eta=1.0 does nothing"):
        own.over({"sampler": "heun", "eta": 1.0})


def test_rho_and_gamma_count(stage):
    karras = [diffuse.Sampling(steps=5, spacing="karras", rho=rho) for rho in (7.0, 2.0)]
    assert len({how.grid(stage.process) for how in karras}) == 2
    weights = [make(weight="min_snr", gamma=gamma).loss for gamma in (5.0, 0.1)]
    t, process = jnp.array([10, 500]), stage.process
    first, second = (process.weight(t, loss.weight, gamma=loss.gamma) for loss in weights)
    assert np.all(first != second)
