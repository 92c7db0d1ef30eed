"""Keys of a config that do nothing with the others chosen.

A rule names a key that decides over others. Where its value makes them do nothing, a flag that sets
one is refused, and of one that the recipe sets a line says so, unless it did nothing there either.
A key at its default is not set: users may set back what a recipe changed.
"""

import fnmatch
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ldm_jax.base import config as config_lib
from ldm_jax.base import errors, values
from ldm_jax.data import sources
from ldm_jax.diffusion.loss_weights import WEIGHTS
from ldm_jax.engine import optim
from ldm_jax.runs import kinds
from ldm_jax.stages.sampling import GUIDED


class Rule(NamedTuple):
    """ruler: the key that decides. wants: whether a value of it gives the others something to do.

    keys: of the others, as patterns: "distil.*".
    """

    ruler: str
    wants: Callable[[Any], bool]
    keys: tuple[str, ...]


def _not(*names: str):
    """Names of ours that do without; of others there is no telling."""
    return lambda value: value not in names


def _option(registry, name: str):
    """Names of entries that take an option; an unknown name is not for us to refuse."""
    return lambda value: value not in registry.names() or name in registry.options(value)


_OF_KL, _OF_CODEBOOK = _not("none", "vq", "lfq"), _not("none", "kl", "noise", "lfq")
RULES = [
    Rule("track.name", bool, ("track.project", "track.entity")),
    Rule("track.name", _not("trackio"), ("track.entity",)),
    Rule("data.crop", _not("center"), ("data.crop_least",)),
    # First stages
    Rule("loss.disc_weight", bool, ("loss.disc_start", "loss.disc_loss")),
    Rule("loss.disc_weight", bool, ("discriminator.*", "optim.discriminator.*")),
    Rule("loss.perceptual_weight", bool, ("lpips.*",)),
    Rule("model.bottleneck", _OF_KL, ("loss.kl_weight", "model.posterior_logvar")),
    Rule("model.bottleneck", _not("none", "kl", "noise"), ("loss.codebook_weight",)),
    Rule("model.bottleneck", _OF_CODEBOOK, ("model.codebook_size", "loss.beta")),
    Rule("model.bottleneck", _OF_CODEBOOK, ("loss.legacy_vq",)),
    Rule("model.attention_kind", _not("linear"), ("model.attention_kernel",)),
    Rule("encoder", bool, ("loss.latent_noise",)),
    # Second stages
    Rule("sample.guidance", lambda scale: scale != 1.0, tuple(f"sample.{k}" for k in GUIDED)),
    Rule("conditioners", bool, ("loss.cond_dropout",)),
    Rule("loss.weight", _option(WEIGHTS, "gamma"), ("loss.gamma",)),
    Rule("loss.weight", _option(WEIGHTS, "cap"), ("loss.cap",)),
    Rule("loss.learn_logvar", bool, ("loss.logvar_features",)),
    Rule("distil.method", bool, ("distil.*",)),
    Rule("adapt.name", bool, ("adapt.*",)),
    Rule("adapt.keep", bool, ("adapt.keep_weight",)),
    Rule("latents.scale", lambda scale: not scale, ("latents.batches", "latents.per_channel")),
    Rule("latents.mean", lambda mean: not mean, ("latents.batches", "latents.per_channel")),
    Rule("model.remat", bool, ("model.remat_saves",)),
]


def _rules(config) -> list[Rule]:
    """All rules: those above, and those of every player's optimizer."""
    found, snapshots = list(RULES), ("checkpoints.snapshots",)
    averages = [f"optim.{player}.average" for player in config.optim]
    for player in config.optim:
        found.append(Rule(f"optim.{player}.warmup", bool, (f"optim.{player}.start",)))
    if optim.POWER not in [_value(config, average) for average in averages]:
        found += [Rule(average, lambda _: False, snapshots) for average in averages]
    return found


def found(config) -> dict[str, str]:
    """{key: why} of the keys that are set and do nothing."""
    flat = config_lib.flat(config.to_dict())
    defaults = config_lib.flat(kinds.of(config).defaults().to_dict())
    reasons = {}
    for rule in _rules(config):
        value = _value(config, rule.ruler)
        if value is None or rule.wants(value):
            continue
        ruler = f"config.{rule.ruler}"
        said = f"with {ruler}={values.shown(value)}" if value else f"without {ruler}"
        for key in flat.keys() - {rule.ruler}:
            if any(fnmatch.fnmatchcase(key, pattern) for pattern in rule.keys):
                reasons.setdefault(key, f"does nothing {said}")
    is_set = lambda key: flat[key] != defaults.get(key, flat[key])
    of_data = {f"data.{key}": reason for key, reason in sources.idle(config.data).items()}
    return of_data | {key: reason for key, reason in reasons.items() if is_set(key)}


def refuse(config, flags: Iterable[str]):
    """Raises UsageError where a flag sets a key that does nothing. flags: keys, "a.b"."""
    idle = found(config)
    for key in sorted(set(flags) & idle.keys()):
        raise errors.UsageError(
            f"--config.{key}={values.shown(_value(config, key))} {idle[key]}: leave it out."
        )


def notes(config, recipe) -> list[str]:
    """A line for each key that does nothing in `config` and does something in `recipe`.

    config: what flags made of `recipe`. What does nothing in a recipe itself waits there for a
    flag, and goes without a line.
    """
    already = found(recipe)
    return [
        f"note: config.{key}={values.shown(_value(config, key))} {reason}."
        for key, reason in sorted(found(config).items())
        if key not in already
    ]


def _value(config, key: str):
    """The value of config.a.b; None where there is no such key."""
    for part in key.split("."):
        config = config.get(part) if hasattr(config, "get") else None
    return config
