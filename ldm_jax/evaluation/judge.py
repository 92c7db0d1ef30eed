"""Evaluation during training: the averaged weights on held-out records, always the same noise."""

import jax
import numpy as np

from ldm_jax.base import shard
from ldm_jax.engine import hosts

SEED = 0x5EED  # the same at every step of every run, so that curves are comparable


class Judge:
    """`judge(params) -> {"val/NAME": mean}` and `judge.pictures(params) -> {name: images}`."""

    def __init__(self, stage, held_out, frozen, mesh):
        whole = shard.replicated(mesh)
        self._held_out, self._frozen, self._mesh = held_out, frozen, mesh
        # Replicated results, which rows are real among them: every host can read them.
        how = dict(in_shardings=(None, whole, None, whole), out_shardings=whole)

        def evaluate(params, frozen, batch, number):
            real, key = batch.pop("real"), jax.random.fold_in(jax.random.key(SEED), number)
            return stage.evaluate(params, frozen, batch, key), real

        self._programs = {"evaluate": jax.jit(evaluate, **how), "draw": jax.jit(stage.draw, **how)}
        self._key = shard.random_key(SEED, mesh)

    def __call__(self, params) -> dict:
        """Means over the held-out records; each record counts once."""
        return {f"val/{name}": mean for name, (mean, _) in self.measure(params).items()}

    def measure(self, params) -> dict:
        """{name: (mean, its standard error)} over the held-out records."""
        found = {}
        for i, batch in enumerate(self._held_out()):
            batch = shard.put_batch(batch, self._mesh)
            number = np.uint32(i)
            values, real = jax.device_get(self._run("evaluate", params, batch, number))
            for name, value in values.items():
                # float64 on the host: the mean must not depend on how records fell into batches.
                found.setdefault(name, []).append(np.float64(value)[real > 0])
        return {name: _mean_and_error(np.concatenate(parts)) for name, parts in found.items()}

    def pictures(self, params) -> dict:
        """What the stage draws from the first held-out batch, as [n, h, w, 3] in [-1, 1]."""
        batch = next(iter(self._held_out()))
        batch.pop("real")
        batch = shard.put_batch(batch, self._mesh)
        return jax.device_get(self._run("draw", params, batch, self._key))

    def _run(self, name, params, batch, how):
        program = self._programs[name]
        if not isinstance(program, jax.stages.Compiled):
            program = hosts.compiled(program, params, self._frozen, batch, how)
            self._programs[name] = program
        return program(params, self._frozen, batch, how)


def _mean_and_error(x):
    return float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else 0.0
