"""What a run measures while it trains, from `config.eval`."""

import jax

from ldm_jax.base import errors
from ldm_jax.data import pipeline, transforms
from ldm_jax.evaluation import distances as distances_lib
from ldm_jax.evaluation import measures, protocol, suite
from ldm_jax.metrics import features
from ldm_jax.runs import data as data_lib
from ldm_jax.runs import kinds


def plan(config) -> measures.Request | None:
    """From config.eval; reads the weights. None where nothing is to be measured."""
    metrics = config.eval.metrics
    if not metrics:
        return None
    name, weights = config.eval.features or "mobilenet", config.eval.weights
    if not weights:
        raise errors.UsageError(
            f"config.eval.metrics={','.join(metrics)} needs config.eval.weights, the weights of "
            f"{name} (docs/evaluation.md says where they are)."
        )
    if config.eval.every % config.steps.eval:
        raise errors.UsageError(
            f"config.eval.every={config.eval.every} must be a multiple of config.steps.eval="
            f"{config.steps.eval}."
        )
    has_classes = kinds.of(config).draws and features.EXTRACTORS.get(name).classes
    suite.check(metrics, has_classes, True, True, "config.eval.metrics")
    settings = suite.Settings(bootstrap=0)  # a curve shows its own noise
    return measures.Request(
        metrics, settings, *measures.open_features(name, weights), reference_records=0
    )


def distances(plan: measures.Request, config, source, mesh) -> distances_lib.Distances:
    """The evaluator of a run in training, always on the same records.

    Of a first stage held-out records against their reconstructions; of a second stage training
    records against samples under their conditions.
    """
    kind = kinds.of(config)
    data = getattr(data_lib, kind.judged_on)(config, source)
    count = min(config.eval.samples or config.eval.records, len(data))
    changes = transforms.standard(config.data.size, "center", False, config.data.interpolation)
    draw, fields = kind.drawing(config)

    def batches():
        return pipeline.eval_batches(
            data,
            changes,
            batch_size=config.eval.batch_size,
            count=count,
            fields=("image", *fields),
            host=jax.process_index(),
            hosts=jax.process_count(),
        )

    size, interpolation = (config.data.size,) * 2, config.data.interpolation
    origin = protocol.origin(data, count, size, "center", interpolation)
    every, total = config.eval.every, config.steps.total
    return distances_lib.Distances(
        plan,
        draw,
        batches,
        origin,
        prefix=kind.prefix,
        due=lambda step: not every or step % every == 0 or step == total,
        mesh=mesh,
    )
