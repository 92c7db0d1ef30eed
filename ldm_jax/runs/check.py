"""What can be known to be wrong with a config before any device is touched."""

import operator

from ml_collections import ConfigDict

from ldm_jax.base import errors
from ldm_jax.data import transforms
from ldm_jax.engine import loop, optim
from ldm_jax.nn import blocks
from ldm_jax.runs import kinds

AT_LEAST_1 = ("batch_size", "accumulate", "eval.records", "eval.batch_size")
AT_LEAST_0 = ("max_bad_steps", "max_loss_spike", "max_rollbacks", "check_replicas")
AT_LEAST_0 += ("checkpoints.snapshots",)


def check(config: ConfigDict, source, codec=None):
    """Raises UsageError for the first thing that is wrong.

    source: the data, opened. codec: of a second stage, in the place of the first stage that the
    config names, which may be untrained.
    """
    for least, keys in ((1, AT_LEAST_1), (0, AT_LEAST_0)):
        for key in keys:
            value = operator.attrgetter(key)(config)
            if value < least:
                raise errors.UsageError(f"config.{key}={value} must be at least {least}.")
    if config.batch_size % config.accumulate:
        raise errors.UsageError(
            f"config.batch_size={config.batch_size} must be a positive multiple of "
            f"config.accumulate={config.accumulate}."
        )
    if not 0 <= config.seed < 2**32:
        raise errors.UsageError(f"config.seed={config.seed}: give a number from 0 to {2**32 - 1}.")
    if config.init_grow and not config.init_from:
        raise errors.UsageError(
            "config.init_grow=True does nothing alone: give the run to start from as "
            "config.init_from=RUN."
        )
    data = config.data
    transforms.standard(data.size, data.crop, data.flip, data.interpolation)
    loop.Intervals(**config.steps)
    for name, player in config.optim.items():
        with errors.of(f"config.optim.{name}"):
            optim.make(player, config.steps.total)
    one_of("config.dtype", config.dtype, ("float32", "bfloat16"))
    one_of("config.model.remat_saves", config.model.get("remat_saves", ""), blocks.REMAT_SAVES)
    kind, given = kinds.of(config), {"codec": codec} if codec else {}
    kind.check(config, source, **given)
    divides(data.size, *kind.divisor(config, **given))
    if len(source) * (1 - data.holdout) < 1:
        raise errors.UsageError(f"config.data.holdout={data.holdout} leaves no training records.")


def one_of(key: str, value, known):
    """Raises UsageError for a value that is not among those known."""
    if value not in known:
        raise errors.UsageError(f"{key}={value!r}: use {' or '.join(map(repr, known))}.")


def divides(size: int, factor: int, what: str):
    """Raises UsageError for images of `size` pixels that do not divide by `factor`.

    what: the factor in words.
    """
    if size % factor:
        nearest = max(1, round(size / factor)) * factor
        raise errors.UsageError(
            f"config.data.size={size} must divide by {factor}, {what}; nearest: {nearest}."
        )
