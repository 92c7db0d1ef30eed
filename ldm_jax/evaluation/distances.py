"""Distances between the data and what the averaged weights draw for it, always with one noise."""

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.base import errors, raster, shard
from ldm_jax.diffusion import samplers
from ldm_jax.engine import loop
from ldm_jax.evaluation import held_out, measures, protocol, suite
from ldm_jax.evaluation import reference as reference_lib
from ldm_jax.runs import data as data_lib
from ldm_jax.runs import kinds

METRICS = "config.eval.metrics"


def request(config) -> measures.Request | None:
    """What `config.eval` asks for; reads the weights. None where nothing is to be measured."""
    metrics, wanted = tuple(config.eval.metrics), config.eval
    if not metrics:
        for key in ("features", "weights", "samples", "every"):
            if wanted[key]:
                raise errors.UsageError(
                    f"config.eval.{key}={wanted[key]} does nothing without {METRICS}: name some, "
                    f"{', '.join(suite.METRICS.names())}, or leave it out."
                )
        return None
    if wanted.every % config.steps.eval:
        raise errors.UsageError(
            f"config.eval.every={wanted.every} must be a multiple of config.steps.eval="
            f"{config.steps.eval}."
        )
    found = measures.make_request(
        metrics, wanted.features or "mobilenet", wanted.weights, (METRICS, "config.eval.weights")
    )
    found.check(
        "reference", "features", *(["logits"] if kinds.of(config).draws else []), flag=METRICS
    )
    return found


class Distances(loop.Evaluator):
    """{"val/NAME": number} of the figures of a request while a run trains.

    Of a first stage they are of held-out records and their reconstructions; of a second stage, of
    training records and samples under their conditions. The records are the same every time.

    codec: that decodes samples in the place of the run's own; measurement: their part of a
    protocol, see protocol.py.
    """

    def __init__(self, request: measures.Request, config, source, mesh, codec=None):
        kind, wanted, data = kinds.of(config), config.eval, config.data
        records = getattr(data_lib, kind.judged_on)(config, source)
        count = min(wanted.samples or wanted.records, len(records))
        draw, fields = kind.drawing(config, **({"codec": codec} if codec else {}))
        share = dict(count=count, host=jax.process_index(), hosts=jax.process_count())
        self._batches = lambda: data_lib.held_out_batches(
            config, records, ("image", *fields), **share
        )
        origin = protocol.origin(records, count, (data.size,) * 2, data.interpolation)
        self._origin = request.extraction | origin
        self.measurement = request.measurement(count, origin["size"], origin)
        self._due = lambda step: (
            not wanted.every or step % wanted.every == 0 or step == config.steps.total
        )
        self._request, self._prefix, self._mesh = request, kind.prefix, mesh
        whole, extractor = shard.replicated(mesh), request.extractor
        self._weights = jax.device_put(request.weights, whole)
        self._reference = None

        def extract(weights, batch, images):
            return *extractor.apply(weights, raster.to_uint8(images)), batch["real"]

        def generate(weights, batch, params, frozen, first):
            keys = samplers.image_keys(held_out.SEED, first + jnp.arange(len(batch["real"])))
            return extract(weights, batch, draw(params, frozen, batch, keys))

        # The results are replicated: every host holds the features of all images.
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
        return {f"val/{name}": value for name, value in self.figures(params, frozen).items()}

    def figures(self, params, frozen) -> dict:
        """{name: number}, at any time."""
        if self._reference is None:
            self._reference = self._measure_data()
        samples = suite.collect(self._samples(params, frozen))
        return self._request.figures(samples, self._reference, self._prefix)

    def _samples(self, params, frozen):
        first = 0
        for batch in self._placed():
            yield self._generate(self._weights, batch, params, frozen, np.int32(first))
            first += len(batch["real"])

    def _measure_data(self):
        outputs = (self._extract(self._weights, batch) for batch in self._placed())
        compute = lambda: suite.collect(outputs, reference_lib.KEEP)
        # A host whose cache has the statistics would leave the others waiting in a collective.
        if jax.process_count() > 1:
            return reference_lib.Reference.of(compute(), self._origin)
        return reference_lib.cached(self._origin, compute)

    def _placed(self):
        """The batches on the devices of the mesh."""
        for batch in self._batches():
            batch.pop("bad", None)
            yield shard.put_batch(batch, self._mesh)
