"""Distances between the data and what the averaged weights draw for it, always with one noise."""

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.base import raster, shard
from ldm_jax.engine import loop
from ldm_jax.evaluation import held_out, suite
from ldm_jax.evaluation import reference as reference_lib


class Distances(loop.Evaluator):
    """{"val/NAME": number} of the figures that `plan` names.

    Args:
      plan: measures.Plan; its features' weights and its metrics.
      draw: (params, frozen, batch, keys [b]) -> images [b, h, w, 3], the keys' images.
      batches: () -> this host's rows of the data, {"image": [b, h, w, 3], "real": [b], ...}; they
        are the reference, and what is drawn is drawn for their other fields.
      origin: what they are; their statistics are cached under it where there is one host.
      prefix: of the figures' names, "r" for reconstructions.
      due: (step) -> bool.
    """

    def __init__(self, plan, draw, batches, origin, prefix, due, mesh):
        whole, extractor = shard.replicated(mesh), plan.extractor
        self._plan, self._batches, self._origin = plan, batches, plan.extraction | origin
        self._prefix, self._due, self._mesh = prefix, due, mesh
        self._weights = jax.device_put(plan.weights, whole)
        self._reference = None

        def extract(weights, batch, images):
            return *extractor.apply(weights, raster.to_uint8(images)), batch["real"]

        def generate(weights, batch, params, frozen, first):
            index = first + jnp.arange(len(batch["real"]))
            keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(held_out.SEED), i))(index)
            return extract(weights, batch, draw(params, frozen, batch, keys))

        # Replicated results: every host holds the features of all.
        self._generate = jax.jit(
            generate, in_shardings=(whole, None, None, whole, whole), out_shardings=whole
        )
        self._extract = jax.jit(
            lambda weights, batch: extract(weights, batch, batch["image"]),
            in_shardings=(whole, None),
            out_shardings=whole,
        )

    def __call__(self, step: int, params, frozen) -> dict:
        if not self._due(step):
            return {}
        if self._reference is None:
            self._reference = self._measure_data()
        samples = suite.collect(self._samples(params, frozen))
        plan = self._plan
        figures = suite.measure(plan.metrics, samples, self._reference, plan.settings)
        return {f"val/{self._prefix}{key}": value for key, value in plan.named(figures).items()}

    def _samples(self, params, frozen):
        first = 0
        for batch in self._batches():
            batch = self._put(batch)
            yield self._generate(self._weights, batch, params, frozen, np.int32(first))
            first += len(batch["real"])

    def _measure_data(self):
        outputs = (self._extract(self._weights, self._put(batch)) for batch in self._batches())
        compute = lambda: suite.collect(outputs, reference_lib.KEEP)
        # Hosts whose caches differ would wait for one another for ever.
        if jax.process_count() > 1:
            return reference_lib.Reference.of(compute(), self._origin)
        return reference_lib.cached(self._origin, compute)

    def _put(self, batch):
        batch.pop("bad", None)
        return shard.put_batch(batch, self._mesh)
