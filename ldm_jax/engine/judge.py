"""Evaluation during training: the averaged weights on held-out records, always the same noise."""

import jax
import numpy as np

from ldm_jax.base import shard

SEED = 0x5EED  # the same at every step of every run, so that curves are comparable


class Judge:
    """`judge(params) -> {"val/NAME": mean}` and `judge.pictures(params) -> {name: images}`."""

    def __init__(self, stage, held_out, frozen, mesh):
        whole, rows = shard.replicated(mesh), shard.batch_sharding(mesh)
        self._held_out, self._frozen, self._mesh = held_out, frozen, mesh
        self._key = jax.random.key(SEED)
        # Replicated results: every host can read them.
        self._evaluate = jax.jit(
            stage.evaluate, in_shardings=(None, whole, rows, whole), out_shardings=whole
        )
        self._draw = jax.jit(
            stage.draw, in_shardings=(None, whole, rows, whole), out_shardings=whole
        )

    def __call__(self, params) -> dict:
        """Means over the held-out records; each record counts once."""
        return {f"val/{name}": mean for name, (mean, _) in self.measure(params).items()}

    def measure(self, params) -> dict:
        """{name: (mean, its standard error)} over the held-out records."""
        found = {}
        for i, batch in enumerate(self._held_out()):
            real = shard.put_batch({"real": batch.pop("real")}, self._mesh)["real"]
            batch = shard.put_batch(batch, self._mesh)
            key = jax.random.fold_in(self._key, i)
            values, real = jax.device_get((self._evaluate(params, self._frozen, batch, key), real))
            for name, value in values.items():
                # float64 on the host: the mean must not depend on how records fell into batches.
                found.setdefault(name, []).append(np.float64(value)[real > 0])
        return {name: _mean_and_error(np.concatenate(parts)) for name, parts in found.items()}

    def pictures(self, params) -> dict:
        """What the stage draws from the first held-out batch, as [n, h, w, 3] in [-1, 1]."""
        batch = next(iter(self._held_out()))
        batch.pop("real")
        batch = shard.put_batch(batch, self._mesh)
        return jax.device_get(self._draw(params, self._frozen, batch, self._key))


def _mean_and_error(x):
    return float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else 0.0
