"""The keys of a config and what each may be: every value is checked here, before all else.

What the keys of base/defaults.py may be stands there. The others are of what the config names (a
network, a conditioner, an optimizer, ...) and are declared by it, see base/values.py.
"""

from ml_collections import ConfigDict

from ldm_jax.base import defaults, errors, record, remote, values
from ldm_jax.data import conditions, sources
from ldm_jax.engine import optim, trackers
from ldm_jax.runs import kinds

GIVEN = {"parent", "dtype", "out_channels"}  # of a network, by the stage that makes it
START = "a config starts from all keys of its base, see configs/base.py and configs/sweeps/base.py"


def check(config: ConfigDict, decided: bool = True):
    """Raises UsageError for the first value that its key cannot have; a key too many or too few.

    decided: whether the data have decided of conditioners what is left to them (runs.data.resolve).
    """
    kind = kinds.of(config)
    check_group("config", config, kind.keys)
    for key, registry in _names(config).items():
        path, _, last = key.rpartition(".")
        name = group(config, path).get(last)
        values.check(f"config.{key}", name, values.Text())
        with errors.of(f"config.{key}"):
            registry.get(name)
    source = values.declared(sources.SOURCES.get(config.data.source))
    further = {
        "data": sources.SOURCES.declared() | source | values.declared(defaults.Data),
        "track": trackers.TRACKERS.declared() | values.declared(defaults.Track),
    }
    learnt = optim.AVERAGES.declared() | optim.OPTIMIZERS.declared()
    for player in config.optim:
        further[f"optim.{player}"] = learnt | values.declared(defaults.Optimizer)
    for path, known in (further | kind.declared(config)).items():
        found = group(config, path)
        if not decided and path.startswith("conditioners."):
            known = known | {key: None for key, value in found.items() if value == conditions.OPEN}
        _check_keys(f"config.{path}", found, known)


def complete(config: ConfigDict) -> ConfigDict:
    """The config with every option of what it names, at its default where the config is silent.

    A run records it, and goes on as it began though a default changes, of a user's module too.
    """
    config = config.copy_and_resolve_references()
    known = kinds.of(config).declared(config)
    learnt = optim.OPTIMIZERS.declared() | optim.AVERAGES.declared()
    known |= dict.fromkeys((f"optim.{player}" for player in config.optim), learnt)
    with config.unlocked():
        for key, registry in _names(config).items():
            path, _, last = key.rpartition(".")
            own = group(config, path)
            for option, default in registry.options(own[last]).items():
                if option in known.get(path, {}) and option not in own and _recordable(default):
                    own[option] = default
    return config


def _recordable(value) -> bool:
    """Whether JSON has it; a function does not go into a config, and stays a default."""
    if isinstance(value, (tuple, list)):
        return all(map(_recordable, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _names(config: ConfigDict) -> dict:
    """{"group.key": the registry of what that key names}."""
    found, kind = {"data.source": sources.SOURCES}, kinds.of(config)
    for player in sorted({*kind.defaults().optim, *config.optim}):
        found[f"optim.{player}.name"] = optim.OPTIMIZERS
        found[f"optim.{player}.schedule"] = optim.SCHEDULES
        found[f"optim.{player}.average"] = optim.AVERAGES
    return found | kind.names(config)


def read(run) -> ConfigDict:
    """The config of a run, with every value checked, and complete; see base/record.py."""
    config = record.read(run)
    if not config.get("stage"):  # as diffusers' own config.json
        said = remote.shown(run)
        raise errors.UsageError(f"{said} is no run: its {record.CONFIG} names no stage.")
    with errors.of(f"{remote.shown(run)}/{record.CONFIG}"):
        check(config)
    return complete(config)


def group(config: ConfigDict, path: str) -> ConfigDict:
    """The group `config.a.b`; what is none is a UsageError."""
    for i, part in enumerate(parts := path.split(".")):
        config = config.get(part)
        _is_group(".".join(["config", *parts[: i + 1]]), config)
    return config


def check_group(said: str, found, keys: type[values.Group]):
    """Raises UsageError for a group, or one in it, that lacks a key or has a wrong value.

    said: what the user calls the group.
    """
    _is_group(said, found)
    known = values.declared(keys)
    if keys.whole and (missing := sorted(known.keys() - found.keys())):
        raise errors.UsageError(f"{said} has no {missing[0]!r}: {START}.")
    for key, kind in known.items():
        if isinstance(kind, type):
            check_group(f"{said}.{key}", found[key], kind)
    own = {key: kind for key, kind in known.items() if not isinstance(kind, type)}
    _check_values(said, found, own)


def of_network(network) -> dict:
    """{key: what it may be} of the group that configures a network: a Flax module, or its maker."""
    return {key: kind for key, kind in values.declared(network).items() if key not in GIVEN}


def _check_keys(said: str, found: ConfigDict, known: dict):
    """As `_check_values`, where a key that is not known is wrong."""
    if unknown := sorted(found.keys() - known.keys()):
        hint = errors.nearest(unknown[0], known)
        raise errors.UsageError(
            f"{said} has no key {unknown[0]!r}{hint} (known: {', '.join(sorted(known))})."
        )
    _check_values(said, found, known)


def _check_values(said: str, found: ConfigDict, known: dict):
    for key in known.keys() & found.keys():
        value, kind = found[key], known[key]
        if isinstance(kind, values.Mapping) and isinstance(value, ConfigDict):
            for name, one in value.items():
                values.check(f"{said}.{key}.{name}", one, kind.each)
        else:
            values.check(f"{said}.{key}", value, kind)


def _is_group(said: str, value):
    if not isinstance(value, ConfigDict):
        raise errors.UsageError(f"{said}={values.shown(value)} must be a group of keys, a dict.")
