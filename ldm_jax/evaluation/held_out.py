"""The averaged weights on held-out records, with the same noise at every step of every run."""

import jax
import numpy as np

from ldm_jax.base import shard
from ldm_jax.engine import hosts, loop

SEED = 0x5EED


class HeldOutRecords(loop.Evaluator):
    """The stage's own measures of held-out records, as {"val/NAME": mean}, and its drawings.

    Args:
      held_out: () -> this host's batches of them, see loop.Data.
    """

    def __init__(self, stage, held_out, mesh):
        whole = shard.replicated(mesh)
        self._held_out, self._mesh = held_out, mesh
        # The results, and which rows are real, are replicated, so that every host can read them.
        how = dict(in_shardings=(None, whole, None, whole), out_shardings=whole)

        def evaluate(params, frozen, batch, number):
            real, key = batch.pop("real"), jax.random.fold_in(jax.random.key(SEED), number)
            return stage.evaluate(params, frozen, batch, key), real

        self._programs = {
            "evaluate": jax.jit(evaluate, **how),
            "draw": jax.jit(stage.draw, **how),
        }
        self._key = shard.random_key(SEED, mesh)

    def __call__(self, step: int, params, frozen) -> dict:
        measured = self.measure(params, frozen)
        return {f"val/{name}": mean for name, (mean, _) in measured.items()}

    def measure(self, params, frozen) -> dict:
        """{name: (mean, its standard error)}; each record counts once."""
        found = {}
        for i, batch in enumerate(self._held_out()):
            batch = shard.put_batch(batch, self._mesh)
            arguments = params, frozen, batch, np.uint32(i)
            values, real = jax.device_get(self._run("evaluate", *arguments))
            for name, value in values.items():
                # float64 on the host: the mean must not depend on how records fell into batches.
                found.setdefault(name, []).append(np.float64(value)[real > 0])
        return {name: _mean_and_error(np.concatenate(parts)) for name, parts in found.items()}

    def pictures(self, step: int, params, frozen) -> dict:
        """What the stage draws from the first held-out batch."""
        batch = next(iter(self._held_out()))
        batch.pop("real")
        batch = shard.put_batch(batch, self._mesh)
        return jax.device_get(self._run("draw", params, frozen, batch, self._key))

    def _run(self, name, *arguments):
        if not isinstance(self._programs[name], jax.stages.Compiled):
            self._programs[name] = hosts.compiled(self._programs[name], *arguments)
        return self._programs[name](*arguments)


def _mean_and_error(x):
    return float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else 0.0
