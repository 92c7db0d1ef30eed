"""What can be known to be wrong with a config before any device is touched."""

from ml_collections import ConfigDict

from ldm_jax.base import errors
from ldm_jax.data import transforms
from ldm_jax.engine import optim
from ldm_jax.runs import keys, kinds


def check(config: ConfigDict, source, codec=None):
    """Raises UsageError for the first thing that is wrong.

    source: the data, opened. codec: of a second stage, in the place of the first stage that the
    config names, which may be untrained.
    """
    keys.check(config)
    config = keys.complete(config)
    if config.batch_size % config.accumulate:
        raise errors.UsageError(
            f"config.batch_size={config.batch_size} must be a positive multiple of "
            f"config.accumulate={config.accumulate}."
        )
    if config.init_grow and not config.init_from:
        raise errors.UsageError(
            "config.init_grow=True does nothing alone: give the run to start from as "
            "config.init_from=RUN."
        )
    data = config.data
    transforms.standard(data.size, data.crop, data.flip, data.interpolation)
    for name, player in config.optim.items():
        with errors.of(f"config.optim.{name}"):
            optim.make(player, config.steps.total)
    kind, given = kinds.of(config), {"codec": codec} if codec else {}
    kind.check(config, source, **given)
    divides(data.size, *kind.divisor(config, **given))
    if len(source) * (1 - data.holdout) < 1:
        raise errors.UsageError(f"config.data.holdout={data.holdout} leaves no training records.")


def divides(size: int, factor: int, what: str):
    """Raises UsageError for images of `size` pixels that do not divide by `factor`.

    what: the factor in words.
    """
    if size % factor:
        nearest = max(1, round(size / factor)) * factor
        raise errors.UsageError(
            f"config.data.size={size} must divide by {factor}, {what}; nearest: {nearest}."
        )
