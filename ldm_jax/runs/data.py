"""The data of a config: its source, what it decides of the config, and its batches."""

import inspect
import os

import jax
from ml_collections import ConfigDict

from ldm_jax.base import record
from ldm_jax.data import conditions as conditions_lib
from ldm_jax.data import latents, pipeline, sources, transforms
from ldm_jax.engine import loop
from ldm_jax.models.conditioners import CONDITIONERS
from ldm_jax.runs import codecs, conditions, idle, keys, teachers
from ldm_jax.scenes import scenes  # noqa: F401  (registers itself)


def load(spec: str, overrides: dict[str, str] | None = None) -> ConfigDict:
    """`record.load`, with every value checked; a flag that would do nothing is refused."""
    config = record.load(spec, overrides)
    keys.check(config, decided=False)
    idle.refuse(config, overrides or ())
    return config


def open_source(data: ConfigDict) -> sources.Source:
    """The data source that `config.data` names; it takes the keys that are its arguments."""
    return sources.open_source(data.source, **arguments(data))


def arguments(data: ConfigDict) -> dict:
    """The keys of `config.data` that its source takes."""
    wanted = inspect.signature(sources.SOURCES.get(data.source)).parameters
    return {k: v for k, v in data.items() if k in wanted}


def resolve(config: ConfigDict, source) -> ConfigDict:
    """Fills in what the data decides of conditioners: keys that are -1, and what goes with them.

    Also what follows from other keys of the config (teachers.complete).
    Data that cannot say a condition (no classes) takes its conditioner out of the recipe. A second
    stage that starts from another's weights takes that one's first stage where it names no run.
    """
    teachers.complete(config)
    with config.unlocked():
        if config.init_from and codecs.is_recipe(config.get("first_stage", "-") or ".py"):
            config.first_stage = keys.read(config.init_from).get("first_stage", "")
        for label, decided in _decided(config, source):
            if decided is None:
                del config.conditioners[label]
            else:
                config.conditioners[label].update(decided)
    return config


def notes(config: ConfigDict, source) -> list[str]:
    """A line for each conditioner that `resolve` takes out of a config."""
    return [
        f"note: config.conditioners.{label} is left out, as the data say nothing of it."
        for label, decided in _decided(config, source)
        if decided is None
    ]


def _decided(config: ConfigDict, source) -> list[tuple[str, dict | None]]:
    """What the data decide of each conditioner of `undecided`; None where they cannot say it."""
    fields = lambda label: CONDITIONERS.get(config.conditioners[label]["name"]).fields
    decide = lambda label: conditions_lib.decide(fields(label), source, config.data)
    return [(label, decide(label)) for label in undecided(config)]


def undecided(config: ConfigDict) -> list[str]:
    """Labels of the conditioners that have keys for the data to decide."""
    given = config.get("conditioners", {})
    return [label for label, kwargs in given.items() if conditions_lib.OPEN in kwargs.values()]


def resolved(config: ConfigDict) -> ConfigDict:
    """`resolve` with the config's own data, which are not opened where they decide nothing."""
    teachers.complete(config)
    return resolve(config, open_source(config.data)) if undecided(config) else config


def held_out(config: ConfigDict, source) -> sources.Source:
    """The records that are never trained on."""
    return source.holdout(config.data.holdout, train=False)


def training(config: ConfigDict, source) -> sources.Source:
    """The records that are."""
    return source.holdout(config.data.holdout, train=True)


def make(config: ConfigDict, source, fields, share: dict | None = None, cache=None) -> loop.Data:
    """Training and held-out batches of this host, or of `share`, {"host": i, "hosts": n}.

    cache: a data.latents.Cache to train from in the place of images.
    """
    data = config.data
    share = share or dict(host=jax.process_index(), hosts=jax.process_count())
    makers = conditions.make(config, source, fields).makers
    evaluated = held_out(config, source)
    train, train_fields = cache or training(config, source), fields
    if cache:
        chain = [latents.Choose(data.flip), *makers]
        train_fields = tuple("moments" if field == "image" else field for field in fields)
    else:
        how = dict(makers=makers, crop_least=data.crop_least)
        chain = transforms.standard(data.size, data.crop, data.flip, data.interpolation, **how)
    return loop.Data(
        train=lambda step: pipeline.train_batches(
            train,
            chain,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=step,
            workers=data.workers,
            threads=data.threads,
            fields=train_fields,
            **share,
        ),
        held_out=lambda: held_out_batches(config, evaluated, fields, **share),
        records=len(train),
        name=train.name,
        max_bad_fraction=data.max_bad_fraction,
        remedy=_remedy(config, cache),
    )


def _remedy(config: ConfigDict, cache) -> str:
    """What makes the batches of a config come sooner; see loop.Data."""
    workers, cores = config.data.workers, os.cpu_count()
    found = [f"give --config.data.workers more than {workers} ({cores} cores are here)"]
    if workers >= cores:
        found = [f"--config.data.workers={workers} already keeps all {cores} cores busy"]
    if "latents" in config and not cache and not codecs.is_identity(config.first_stage):
        found.append("train from a latent cache (python -m ldm_jax.encode, config.latents.cache)")
    elif config.data.path and not cache:
        found.append(f"store images of {config.data.size} pixels, which decode sooner")
    return " or ".join(found)


def held_out_batches(config: ConfigDict, records, fields, count: int | None = None, **share):
    """The first `count` records, by default `config.eval.records`; centre crops, in order."""
    data, makers = config.data, conditions.make(config, records, fields).makers
    return pipeline.eval_batches(
        records,
        transforms.standard(data.size, "center", False, data.interpolation, makers),
        batch_size=config.eval.batch_size,
        count=config.eval.records if count is None else count,
        fields=fields,
        **share,
    )
