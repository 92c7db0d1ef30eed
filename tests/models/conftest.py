"""Parameters for tests: numpy fills them faster than XLA compiles their initialisers."""

import jax
import numpy as np
import pytest


def _filled(model, *args, **kwargs):
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *args, **kwargs))["params"]
    rng = np.random.default_rng(0)

    def fill(shape):
        spread = 1 / np.prod(shape.shape[:-1]) ** 0.5 if len(shape.shape) > 1 else 0.5
        return (spread * rng.normal(size=shape.shape)).astype(np.float32)

    return jax.tree.map(fill, shapes)


@pytest.fixture(scope="session")
def filled():
    """filled(model, *example) -> random params, none of them zero-initialised."""
    return _filled
