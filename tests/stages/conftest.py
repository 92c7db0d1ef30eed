"""Random parameters without compiling an initialiser: numpy fills what `init` would shape."""

import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def fill():
    """fill(init) -> params shaped as init(key) makes them, none of them zero."""

    def filled(init):
        rng = np.random.default_rng(0)

        def leaf(x):
            spread = 1 / np.prod(x.shape[:-1]) ** 0.5 if len(x.shape) > 1 else 0.5
            return (spread * rng.normal(size=x.shape)).astype(np.float32)

        return jax.tree.map(leaf, jax.eval_shape(init, jax.random.key(0)))

    return filled


@pytest.fixture(scope="session")
def images():
    return np.random.default_rng(1).uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)
