"""The conditioners of a config, and the condition fields that they read, made of records."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ldm_jax.base import errors, upgrade
from ldm_jax.data import conditions, transforms
from ldm_jax.models import clip  # noqa: F401  (registers itself)
from ldm_jax.models.conditioners import CONDITIONERS, label_of, num_classes
from ldm_jax.runs import keys, kinds

HINT = "hint"  # the field that a control reads


def make_conditioners(config: ConfigDict) -> dict:
    """{label: conditioner}, by label; other keys of a group are for the makers of its fields."""
    made, dtype = {}, jnp.dtype(config.dtype)
    for label, kwargs in sorted(config.conditioners.items()):
        conditioner = CONDITIONERS.get(kwargs["name"])
        own = keys.of_network(conditioner).keys() - {"name"}
        given = {k: v for k, v in kwargs.items() if k in own}
        made[label] = conditioner(**given, dtype=dtype, name=f"{upgrade.PREFIX}{label}")
    return made


def declared(name: str) -> dict:
    """{key: what it may be} of the group of a registered conditioner."""
    conditioner = CONDITIONERS.get(name)
    fields = [conditioner.latent_of.get(f, f) for f in conditioner.fields]
    return keys.of_network(conditioner) | conditions.options(fields)


def make(config: ConfigDict, source=None, fields=None, codec=None) -> conditions.Conditions:
    """How the condition fields of a config are made of records; see data/conditions.py.

    source: for the names of its classes and the words of its captions; None knows neither.
    fields: of the batch, if not all of them are wanted.
    codec: in the place of the first stage that the config names, which may be untrained.
    """
    data, makers, wanted = config.data, [], []
    kind = kinds.of(config)
    codec, image = codec or kind.codec(config), (1, data.size, data.size, 3)
    latent = (1, data.size // codec.f, data.size // codec.f, codec.channels)
    for label, conditioner in kind.conditioners(config).items():
        example = jax.eval_shape(lambda c=conditioner, i=image, z=latent: c.example(i, z))
        shapes = {field: array.shape[1:] for field, array in example.items()}
        for field in conditioner.told:  # how is drawn, which no record says
            del shapes[field]
        for field, picture in conditioner.latent_of.items():
            del shapes[field]
            shapes[picture] = image[1:]
        if fields is not None and not set(shapes) & set(fields):
            continue
        group = config.conditioners[label]
        makers += conditions.makers(conditions.Given(shapes, conditioner, group, data, source))
        wanted += shapes
    framing = transforms.standard(data.size, "center", False, data.interpolation)[:-1]
    return conditions.Conditions(tuple(makers), tuple(dict.fromkeys(wanted)), tuple(framing))


def shows_null(config: ConfigDict) -> bool:
    """Whether training shows the null condition, which guidance leads away from."""
    rates = [conditioner.get("dropout") for conditioner in config.conditioners.values()]
    return any(config.loss.cond_dropout if rate is None else rate for rate in rates)


def told(config: ConfigDict) -> ConfigDict | None:
    """The group of the conditioner that tells the denoiser its guidance, where there is one."""
    label = label_of(config.conditioners, "guidance")
    return config.conditioners[label] if label else None


def check_guidance(config: ConfigDict, guidance: float, weaker: str = ""):
    """Raises UsageError for guidance, or a weaker run, that a student cannot be drawn with."""
    own = told(config)
    if own is None and not config.distil.method:
        return
    if weaker:
        raise errors.UsageError(
            f"weaker={weaker}: this run is a student, which leads away from nothing: leave it out."
        )
    if own is None and guidance != 1.0:
        raise errors.UsageError(
            f"guidance={guidance}: this run is a student, and its guidance is in its weights: draw "
            "with guidance 1, or train a student with another config.distil.guidance."
        )
    bounds = own.get("bounds", ()) if own else ()
    if bounds and not bounds[0] <= guidance <= bounds[1]:
        raise errors.UsageError(
            f"guidance={guidance}: this run is a student of guidance from {bounds[0]:g} to "
            f"{bounds[1]:g}: draw within, or train a student with another config.distil.guidance."
        )


def controlled(config: ConfigDict) -> bool:
    """Whether a run follows a control, so that it draws only under a hint."""
    return bool(label_of(config.get("conditioners", {}), HINT))


def check_controls(config: ConfigDict):
    """Raises UsageError for more than one control, and for the scale of one that is not there."""
    given = config.conditioners
    own = [label for label in sorted(given) if CONDITIONERS.get(given[label].name).control_key]
    if len(own) > 1:
        raise errors.UsageError(f"config.conditioners has the controls {', '.join(own)}: give one.")
    check_scale(config, config.sample.get("conditioning_scale", 1.0))


def check_scale(config: ConfigDict, conditioning_scale: float):
    """Raises UsageError for the scale of a control that a run does not have."""
    if conditioning_scale != 1.0 and not controlled(config):
        raise errors.UsageError(
            f"conditioning_scale={conditioning_scale} is of a control, which this run does not "
            "have: leave it at 1."
        )


def check_classes(said: str, ids, classes: int):
    """Raises UsageError for what are no class ids [n] of a run; the one behind them is none.

    said: what the user calls them. Under jit an id out of range would read some other row.
    """
    shape, dtype = np.shape(ids), np.asarray(ids).dtype
    wrong = [one for one in np.ravel(ids) if dtype.kind not in "iu" or not 0 <= one <= classes]
    if len(shape) != 1 or wrong:
        raise errors.UsageError(
            f"{said} must be ids in 0..{classes - 1}; got shape {shape}"
            + (f", first wrong id {wrong[0]}." if wrong else ".")
        )


def check_hints(said: str, hints, shape: tuple):
    """Raises UsageError for hints that a control cannot follow; shape: [h, w, c] of each.

    said: what the user calls them.
    """
    for i, one in enumerate(hints):
        if np.shape(one) != shape:
            raise errors.UsageError(
                f"{said}: hint {i} has the shape {np.shape(one)}, and this run's control follows "
                f"hints [h, w, c] of {shape}: make it that size."
            )
        if not 0 <= np.min(one) <= np.max(one) <= 1:
            raise errors.UsageError(
                f"{said}: hint {i} has values from {np.min(one):g} to {np.max(one):g}: they must "
                "lie in [0, 1]."
            )


def classes(config: ConfigDict) -> int:
    """Classes that a run is conditioned on, under whatever label; 0: none."""
    return num_classes(config.get("conditioners", {}))
