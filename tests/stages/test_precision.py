"""bfloat16 beside float32: the same losses, and gradients that point the same way."""

import jax
import jax.numpy as jnp
import pytest

from ldm_jax.base import config as config_lib
from ldm_jax.engine import step as step_lib
from ldm_jax.runs import kinds

KEY = jax.random.key(5)


def losses_and_gradients(variant, dtype, fill):
    """{player: (loss, its gradient as one vector)} on the same random weights and images."""
    config = config_lib.load(f"configs/debug.py:{variant}")
    config.data.size, config.dtype = 16, dtype
    if variant == "ldm":
        config.first_stage = "identity"
        config.conditioners["class"].num_classes = 3
    else:
        config.loss.disc_start = 0
    kind = kinds.of(config)
    stage = kind.stage(config, kind.frozen_shapes(config))
    params = {player.name: fill(player.init) for player in stage.players}
    batch = {"image": jax.random.uniform(KEY, (4, 16, 16, 3), minval=-1.0)}
    batch["class"] = jnp.arange(4) % 3
    frozen = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), stage.frozen)
    run = lambda params: step_lib._gradients(
        stage.players, lambda p: p, params, frozen, batch, KEY, jnp.int32(1)
    )
    grads, metrics = jax.jit(run)(params)
    flat = lambda tree: jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
    return {name: (metrics[f"{name}/loss"], flat(grads[name])) for name in grads}


@pytest.mark.parametrize(
    "variant", ["first_stage", pytest.param("vq", marks=pytest.mark.slow), "ldm"]
)
def test_bfloat16_has_the_losses_and_the_gradients_of_float32(variant, fill):
    exact = losses_and_gradients(variant, "float32", fill)
    rounded = losses_and_gradients(variant, "bfloat16", fill)
    for player, (loss, gradient) in exact.items():
        other, direction = rounded[player]
        assert other.dtype == direction.dtype == jnp.float32
        cosine = jnp.vdot(gradient, direction) / jnp.linalg.norm(gradient)
        cosine /= jnp.linalg.norm(direction)
        assert float(other) == pytest.approx(float(loss), rel=0.005)
        assert float(cosine) > 0.995
