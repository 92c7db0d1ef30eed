"""Laws of path regularisation, on maps and Gaussians where everything is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from test_distil import FROZEN, SOLVED, TEACHER, S, best, model, student
from test_distil import params as multiplier

from ldm_jax.base import errors
from ldm_jax.nn import blocks
from ldm_jax.stages import thumbnails
from ldm_jax.stages.codec import Codec
from ldm_jax.stages.diffuse import Loss

MAP = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]], np.float32)
GIVEN = FROZEN | {"thumbnail": MAP}


class Painted(nn.Module):
    """A first stage of f = 2 whose picture of latents is MAP and a constant, in squares."""

    latent_channels: int = 3
    f: int = 2
    bottleneck: str = "none"

    def encode(self, x, train=False):
        return blocks.downsample_average(x)

    def decode(self, z, train=False):
        return blocks.upsample_nearest(z @ MAP + 0.3)


def test_the_map_of_latents_to_pictures_is_found_up_to_its_size():
    images = jax.random.normal(jax.random.key(0), (8, 8, 8, 3))
    arrays = {"scale": np.float32(0.5), "shift": np.float32([0.1, 0.2, 0.3])}
    given = [{"image": images}], arrays, jax.random.key(1)
    found = np.array(thumbnails.measure(Codec(Painted()), {}, *given))
    np.testing.assert_allclose(found / found[0, 0], MAP, atol=1e-5)
    z = 0.5 * (blocks.downsample_average(images) - arrays["shift"])
    assert np.std(np.reshape(z @ found, (-1, 3)) - np.mean(z @ found, (0, 1, 2))) == pytest.approx(
        1, rel=0.01
    )


def loss_of(own, terms, t, step=0, rows=64):
    """(loss, metrics) of the denoiser `own` at timestep t, in a training of 10 steps."""
    stage = dataclasses.replace(model(), loss=Loss("l2", "uniform", 0.0, terms=terms), total=10)
    process = dataclasses.replace(stage.process)
    object.__setattr__(process, "draw_times", lambda key, shape: jnp.full(shape, t))
    stage = dataclasses.replace(stage, process=process)
    batch = {"image": S * jax.random.normal(jax.random.key(3), (rows, 4, 4, 3))}
    shared = {}
    for player in stage.stage({}).players:
        both = {"denoiser": own, "thumbnail": multiplier(best())}
        loss, (metrics, shared) = player.loss(both, GIVEN, batch, jax.random.key(0), step, shared)
    return loss, metrics


def test_what_is_best_without_the_term_is_best_with_it():
    def slope(terms, x_0, t=300):
        loss = lambda own: loss_of(own, terms, t, rows=4096)[0]
        return float(jax.jit(jax.grad(loss))(multiplier(x_0))["net"]["numbers"][t])

    held, far = {"thumbnail": 1.0}, 0.5 * best()
    assert slope(held, far) / slope({}, far) > 1.5
    assert abs(slope(held, best())) < 0.1 * abs(slope(held, far))


def test_a_thumbnails_denoiser_counts_at_high_noise_while_training_is_young():
    term = jax.jit(lambda *given: loss_of(given[0], {"coarse": 1.0}, *given[1:])[1]["term_coarse"])
    value = lambda x_0, t, step: float(term(multiplier(x_0), t, step))
    # Here the mean of the thumbnail is the thumbnail of the mean, and both are known.
    assert value(best(), 900, 0) < 1e-10
    wrong = value(0.5 * best() + 0.1, 900, 0)
    assert wrong > 1e-4
    assert value(0.5 * best() + 0.1, 900, 5) == pytest.approx(wrong / 2, rel=1e-4)
    assert value(0.5 * best() + 0.1, 100, 0) == 0


def test_a_consistent_student_is_so_in_its_thumbnails():
    held = dataclasses.replace(model(), loss=Loss("l2", "uniform", 0.0, terms={"thumbnail": 1.0}))
    distil, batch = student(total=300), {"image": S * np.ones((16, 4, 4, 3), np.float32)}

    def loss(distil, own):
        given = GIVEN | {"teacher": TEACHER}, batch, jax.random.key(0), 299, {}
        return jax.jit(lambda own: distil.loss({"denoiser": own}, *given))(own)

    with_term = dataclasses.replace(distil, student=held)
    with_term.check()
    assert loss(with_term, SOLVED)[1][0]["term_thumbnail"] < 1e-8
    wrong, (metrics, _) = loss(with_term, TEACHER)
    assert metrics["term_thumbnail"] > 1e-5 and wrong > loss(distil, TEACHER)[0]


def test_terms_that_cannot_be_had_are_refused():
    with pytest.raises(errors.UsageError, match="registered: coarse, thumbnail"):
        Loss("l2", "uniform", 0.0, terms={"thumbnails": 1.0})
    coarse = dataclasses.replace(model(), loss=Loss("l2", "uniform", 0.0, terms={"coarse": 1.0}))
    with pytest.raises(errors.UsageError, match=r"terms.coarse=1.0 is not of this config.distil"):
        dataclasses.replace(student(), student=coarse).check()
    with pytest.raises(errors.UsageError, match=r"config.data.size=5 must divide by 2; nearest: 4"):
        dataclasses.replace(coarse, size=5).check()
