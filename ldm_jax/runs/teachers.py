"""What the run of a student has to do with its teacher's: the model, the weights, what is alike."""

import dataclasses
import math

import jax

from ldm_jax.base import errors, tree
from ldm_jax.engine import snapshots
from ldm_jax.models.backbones import BACKBONES
from ldm_jax.runs import adapters, conditions, keys, kinds
from ldm_jax.runs import frozen as frozen_lib
from ldm_jax.stages import (  # noqa: F401  (two register themselves)
    consistency,
    distil,
    distribution,
)

KEYS = ("teacher", "weaker")  # of config.distil, runs whose weights are frozen


def complete(config):
    """What follows from a range of guidance, `config.distil.guidance=(low, high)`, in the config.

    A conditioner tells the student its guidance. Its sample.guidance, where none is chosen (it is
    1), is the middle of the range. A student that starts from its teacher grows by the conditioner.
    """
    bounds = config.get("distil", {}).get("guidance", 0.0)
    if not isinstance(bounds, tuple) or not config.distil.method:
        return
    if len(bounds) == 1:  # a flag's number in the place of a range
        config.distil.guidance = bounds[0]
        return
    said = f"config.distil.guidance={bounds}"
    numbers = all(isinstance(bound, (int, float)) for bound in bounds)
    if not (numbers and len(bounds) == 2 and 0 <= bounds[0] < bounds[1] < math.inf):
        raise errors.UsageError(f"{said}: give a number, or low,high with 0 <= low < high.")
    kwargs = dict(config.model)
    width = BACKBONES.make(kwargs.pop("name"), **kwargs).time_width
    if not width:
        raise errors.UsageError(
            f"{said}: the backbone {config.model.name!r} can be told no guidance (it has no "
            "time_width): give a number."
        )
    bounds = tuple(map(float, bounds))
    told = dict(name="scalar", width=width, bounds=bounds)
    with config.unlocked():
        config.distil.guidance = bounds
        config.conditioners.guidance = told
        config.init_grow = bool(config.init_from)
        if config.sample.guidance == 1.0:
            config.sample.guidance = sum(bounds) / 2


def distilled(config, student):
    """The stage of a student, a stages.distil value. student: its model, a Diffuse."""
    options = dict(config.distil)
    method, path = options.pop("method"), options.pop("teacher")
    guidance, weaker = options.pop("guidance"), options.pop("weaker")
    teacher = None
    if path:
        own = keys.read(path)
        kinds.expect(own, "diffuse", f"config.distil.teacher={path}")
        teacher = kinds.of(own).model(own, student.codec)
        guidance = guidance or teacher.sampling.guidance
        if isinstance(guidance, tuple):  # of each row; what is measured is at the student's own
            guidance = student.sampling.guidance
        guided = dataclasses.replace(teacher.sampling, guidance=guidance)
        teacher = dataclasses.replace(teacher, sampling=guided)
    elif guidance or weaker:
        key = "guidance" if guidance else "weaker"
        raise errors.UsageError(
            f"config.distil.{key}={config.distil[key]} is of a teacher: set config.distil.teacher."
        )
    with errors.of("config.distil"):
        return distil.METHODS.call(method, student, teacher, config.steps.total, **options)


def check(config, student):
    """Raises UsageError for a teacher that does not fit; touches no device."""
    stage = distilled(config, student)
    stage.check()
    _check_players({player.name for player in stage.players({})}, config)
    if not (path := config.distil.teacher):
        return
    own, said = keys.read(path), f"config.distil.teacher={path}"
    for key in KEYS:
        if config.distil[key]:
            adapters.refuse(config.distil[key], f"config.distil.{key}={config.distil[key]}")
    if conditions.told(own):
        raise errors.UsageError(
            f"{said} is told its guidance, as students are: give the teacher of that student."
        )
    if conditions.told(config) and not isinstance(config.distil.guidance, tuple):
        raise errors.UsageError(
            f"config.distil.guidance={config.distil.guidance}: this config has a conditioner that "
            "tells the student its guidance: give low,high, or take that conditioner out."
        )
    model = kinds.of(own).model(own, student.codec)
    if missing := set(model.fields) - set(student.fields):
        raise errors.UsageError(
            f"{said} is conditioned on {', '.join(sorted(missing))}, which this config is not."
        )
    if model.size != student.size:
        raise errors.UsageError(
            f"{said} draws images of {model.size} pixels, config.data.size={student.size}."
        )
    if weaker := config.distil.weaker:
        other = keys.read(weaker)
        if (other.get("model"), other.get("conditioners")) != (own.model, own.conditioners):
            raise errors.UsageError(
                f"config.distil.weaker={weaker} is not a less trained run of the teacher's model: "
                "its config.model or config.conditioners differ."
            )
    guidance = config.distil.guidance or own.sample.guidance
    if weaker and guidance == 1.0:
        raise errors.UsageError(
            f"config.distil.weaker={weaker} does nothing at guidance 1: set config.distil.guidance."
        )
    if guidance != 1.0 and not weaker and not conditions.shows_null(own):
        raise errors.UsageError(
            f"{said} cannot be guided by {guidance}: it never saw a null condition (its config has "
            "loss.cond_dropout=0). Set config.distil.guidance=1, or weaker to a less trained run."
        )


def _check_players(learn: set, config):
    """Raises UsageError unless config.optim has an optimizer of each of those that `learn`."""
    method = f"config.distil.method={config.distil.method}"
    if missing := sorted(learn.difference(config.optim)):
        raise errors.UsageError(
            f"{method} trains a {missing[0]}, too, for which there is no "
            f"config.optim.{missing[0]}: start from configs/{config.distil.method}.py."
        )
    if idle := sorted(set(config.optim) - learn):
        raise errors.UsageError(f"config.optim.{idle[0]} does nothing with {method}: delete it.")


def frozen(config, student) -> tuple[frozen_lib.Frozen, ...]:
    """The networks that a student is taught by."""
    if not config.distil.method:
        return ()

    def one(key, path):
        own = kinds.of(config).model(keys.read(path), student.codec)

        def read():
            params, step = snapshots.read_params(path, ("denoiser",))
            return params["denoiser"], {f"{key}_run": path, f"{key}_step": step}

        return frozen_lib.Frozen(
            name=key,
            key=key,
            given=f"config.distil.{key}={path}",
            read=read,
            shapes=lambda: jax.eval_shape(lambda: own.init(jax.random.key(0))),
            digest=tree.digest,
        )

    return tuple(one(key, config.distil[key]) for key in KEYS if config.distil[key])
