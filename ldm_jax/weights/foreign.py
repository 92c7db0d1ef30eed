"""A foreign checkpoint, opened: what our config must say, its arrays, the table that fits them."""

import dataclasses
from typing import Any

from ldm_jax.base import errors


@dataclasses.dataclass
class Foreign:
    """One stage of a foreign checkpoint.

    config: changes to the first_stage() or ldm() of base/defaults.py, nested.
    tables: {player: (state, rules, ignored keys)}, as rules.convert takes them; ema likewise.
    first_stage: of a second stage, the Foreign beneath it, or "identity:CHANNELS".
    files: {place in the run: file to copy, text, or bytes}.
    notes: lines that the user should read.
    """

    stage: str
    config: dict
    tables: dict[str, tuple]
    ema: dict[str, tuple] = dataclasses.field(default_factory=dict)
    first_stage: Any = None
    step: int = 0
    files: dict = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


def defaults(network) -> dict:
    """The defaults of the arguments of a network of ours, given as its Linen class."""
    return {field.name: field.default for field in dataclasses.fields(network)}


def unusual(network, **arguments) -> dict:
    """Those arguments of a network of ours that differ from its defaults.

    They belong to rare variants, so a config names them only where it has to.
    """
    usual = defaults(network)
    return {key: value for key, value in arguments.items() if value != usual[key]}


def refuse_unless(config: dict, where: str, **allowed):
    """Raises UsageError for a key of a foreign config whose value we do not implement.

    allowed: {key: its values, the first of which is the default}.
    """
    for key, values in allowed.items():
        given = config.get(key, values[0])
        if given not in values:
            known = " or ".join(repr(v) for v in values)
            raise errors.UsageError(f"{where}: {key}={given!r} is not supported; only {known}.")
