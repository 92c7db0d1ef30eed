"""Distances during training: what the averaged weights draw, against the data, always the same."""

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.base import raster, shard
from ldm_jax.evaluation import judge, suite
from ldm_jax.evaluation import reference as reference_lib


class Distances:
    """`distances(step, params, frozen) -> {"val/NAME": number}`, empty where none is due.

    Args:
      draw: (params, frozen, batch, keys [b]) -> images [b, h, w, 3], the keys' images.
      batches: () -> this host's rows of the data, {"image": [b, h, w, 3], "real": [b], ...}; they
        are the reference, and what is drawn is drawn for their other fields.
      origin: what they are; their statistics are cached under it where there is one host.
      metrics, settings: see metrics.suite. extractor, weights: see metrics.features.
      prefix: of the figures' names, "r" for reconstructions.
      due: (step) -> bool.
    """

    def __init__(
        self, draw, batches, origin, metrics, settings, extractor, weights, prefix, due, mesh
    ):
        whole = shard.replicated(mesh)
        self._batches, self._origin = batches, origin
        self._metrics, self._settings, self._due = metrics, settings, due
        self._extractor, self._prefix, self._mesh = extractor, prefix, mesh
        self._weights = jax.device_put(weights, whole)
        self._reference = None

        def extract(weights, batch, images):
            return *extractor.apply(weights, raster.to_uint8(images)), batch["real"]

        def generate(weights, batch, params, frozen, first):
            index = first + jnp.arange(len(batch["real"]))
            keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(judge.SEED), i))(index)
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
        figures = suite.measure(self._metrics, samples, self._reference, self._settings)
        name = self._extractor.name
        return {f"val/{self._prefix}{name(key)}": value for key, value in figures.items()}

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
