"""A network's first variables."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from ldm_jax.nn import variables


def test_a_network_is_traced_once_for_each_shape_of_its_example():
    traced = []

    class Network(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            traced.append((self.width, x.shape[-1]))
            return nn.Dense(self.width)(x)

    def shape(width, channels):
        x, key = jnp.zeros((1, channels)), lambda: jax.random.key(0)
        found = jax.eval_shape(lambda: variables.initial(Network(width), key(), x))
        return found["params"]["Dense_0"]["kernel"].shape

    wanted = [(3, 2), (3, 4), (5, 2)]
    for width, channels in wanted * 2:
        assert shape(width, channels) == (channels, width)
    assert traced == wanted
