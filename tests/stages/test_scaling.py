"""Laws of the latents' scale, of all channels or of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.base import config as config_lib
from ldm_jax.base.errors import UsageError
from ldm_jax.models.bottleneck import BOTTLENECKS
from ldm_jax.runs import second_stage
from ldm_jax.stages import scaling
from ldm_jax.stages.codec import Codec

KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)


class Shifted(Codec):
    """Posteriors with modes of known, different statistics, and half as much noise as signal."""

    bottleneck = BOTTLENECKS.get("kl")

    def moments(self, params, x):
        mode = x * jnp.array([1.0, 2.0, 3.0]) + jnp.array([0.0, 5.0, -1.0])
        noise = jnp.log(0.5 * jnp.var(mode, (0, 1, 2)))
        return jnp.concatenate([mode, jnp.broadcast_to(noise, mode.shape)], -1)


@pytest.mark.parametrize("sizes", [(4,), (1, 3), (2, 1, 1)])
def test_latent_statistics_pool_over_everything(images, sizes):
    batches = [{"image": part} for part in np.split(images, np.cumsum(sizes)[:-1])]
    found = scaling.measure(Shifted(), {}, batches, KEY)
    z = [
        Shifted().encode_batch({}, batch, jax.random.fold_in(KEY, i))
        for i, batch in enumerate(batches)
    ]
    z = np.concatenate(z).astype(np.float64)
    assert found["scale"] == pytest.approx(1 / z.std(), rel=1e-6)
    np.testing.assert_allclose(found["mean"], z.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["std"], z.std((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found["noise"], 1 / 3, atol=0.08)
    assert found["latents"] == 4 * 8 * 8


def test_with_a_scale_of_its_own_every_channel_has_mean_0_and_deviation_1(images):
    found = scaling.measure(Shifted(), {}, [{"image": images}], KEY, per_channel=True)
    frozen = scaling.arrays(found)
    latents = Shifted().encode_batch({}, {"image": images}, jax.random.fold_in(KEY, 0))
    z = np.asarray(scaling.scaled(frozen, latents), np.float64)
    np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(z.std((0, 1, 2)), 1, rtol=1e-5)
    np.testing.assert_allclose(scaling.unscaled(frozen, z), latents, rtol=1e-5, atol=1e-5)


def test_a_dead_channel_has_no_scale_of_its_own(images):
    images = images * np.array([1, 1, 0], np.float32)
    with pytest.raises(UsageError, match="constant"):
        scaling.measure(Codec(None), {}, [{"image": images}], KEY, per_channel=True)
    assert scaling.measure(Codec(None), {}, [{"image": images}], KEY)["scale"] > 0


def test_no_images_and_constant_images_have_no_scale():
    with pytest.raises(UsageError, match="No images"):
        scaling.measure(Codec(None), {}, [], KEY)
    constant = {"image": np.zeros((2, 8, 8, 3), np.float32)}
    with pytest.raises(UsageError, match="constant"):
        scaling.measure(Codec(None), {}, [constant], KEY)


@pytest.mark.parametrize(
    ("latents", "line"),
    [
        (
            dict(mean=(0.0, 1.0)),
            r"config.latents.std=\(\): needs a number for each of the 2 channels",
        ),
        (dict(mean=(0.0,), std=(1.0,)), r"config.latents.mean=\(0.0,\): needs a number for each"),
        (
            dict(per_channel=True, scale=0.2),
            "scale=0.2 and config.latents.per_channel=True: give one",
        ),
        (dict(std=(1.0, 1.0), mean=(0.0, 0.0), scale=0.2), "give one of them"),
    ],
)
def test_half_a_normalisation_is_refused(latents, line):
    given = config_lib.from_dict(dict(scale=0.0, per_channel=False, mean=(), std=()) | latents)
    with pytest.raises(UsageError, match=line):
        second_stage._check_latents(given, 2)
