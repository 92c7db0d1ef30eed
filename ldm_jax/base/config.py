"""Configs: Python files with `get_config(arg)`, and overrides from the command line.

A config is an ml_collections ConfigDict that holds every key and is locked, so that no other key
can be set. A group that names something (a network, a schedule) takes further keys of what it
names. Only the upper layers see a config; what they call gets keyword arguments.
"""

import hashlib
import importlib
import json
import pathlib
import runpy
import traceback

from ml_collections import config_dict

from ldm_jax.base import errors, recipes, values

NAMES = {"name", "schedule", "weight", "method"}  # by which a group says what it configures


def load(
    spec: str, overrides: dict[str, str] | None = None, flag: str = "--config"
) -> config_dict.ConfigDict:
    """Reads a recipe and applies overrides.

    spec: `path/to/file.py[:variant]`, or a recipe's name instead of the file (base/recipes.py).
    overrides: `{"a.b": "text"}`. flag: what named the recipe.

    Raises:
      UsageError: a missing file, an unknown variant, an unknown key or a wrong type, in one line.
    """
    path, _, variant = spec.partition(":")
    file = recipes.find(path)
    if file is None or file.suffix != ".py":
        missing = f"no file, recipe or run {path}{recipes.nearest(path)}"
        raise errors.UsageError(
            f"{flag}={spec}: {f'not a python file: {path}' if file else missing} "
            "(a config is a python file with get_config, e.g. configs/quickstart.py:ldm; "
            "`ldm list recipes` names those of ldm_jax)."
        )
    with errors.of(f"{flag}={spec}"):
        config = _execute(file, variant)
    return overridden(config, overrides)


def overridden(config, overrides: dict[str, str] | None) -> config_dict.ConfigDict:
    """Sets `{"a.b": "text"}` in `config`, imports the plugins that it names, and returns it."""
    for key, text in (overrides or {}).items():
        override(config, key, text)
    import_plugins(config.get("plugins", ()))
    return config


def import_plugins(modules: tuple[str, ...], key: str = "config.plugins"):
    """Imports the user's own modules, which register further names for configs and flags."""
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as e:
            said = f"{key}: {name} cannot be imported ({type(e).__name__}: {errors.reason(e)})"
            if isinstance(e, ModuleNotFoundError) and e.name == name.partition(".")[0]:
                raise errors.UsageError(f"{said}; put its folder on PYTHONPATH.") from e
            frames = traceback.extract_tb(e.__traceback__)
            own = [frame for frame in frames if frame.name == "<module>"]  # as of what it imports
            at = f", at {own[-1].filename}:{own[-1].lineno}" if own else ""
            raise errors.UsageError(f"{said}{at}.") from e


def _execute(file: pathlib.Path, variant: str) -> config_dict.ConfigDict:
    recipes.make_importable(file)
    try:
        found = runpy.run_path(str(file))
        if "get_config" not in found:
            raise errors.UsageError(f"{file} has no get_config, so it is no recipe.")
        config = found["get_config"](variant or None)
    except errors.UsageError:
        raise
    except (Exception, SystemExit) as e:
        raise errors.UsageError(f"get_config raises {type(e).__name__}: {e}") from e
    if not isinstance(config, config_dict.ConfigDict):
        raise errors.UsageError(f"get_config returned {type(config).__name__}, not a ConfigDict.")
    return config.lock()


def variants(arg: str | None, **known):
    """Calls the function of variant `arg`, by default the first: `variants(arg, ldm=fn, ...)`."""
    if arg is not None and arg not in known:
        hint = errors.nearest(arg, known)
        raise errors.UsageError(f"Unknown config variant {arg!r}; known: {', '.join(known)}{hint}")
    return known[arg or next(iter(known))]()


def override(config, key: str, text: str, flag: str = "--config", of: str = "config"):
    """Sets `config.a.b` from the text of a flag, keeping the type of the value there.

    flag, of: what the config is called where a key is given, and in words.
    """
    if _further(config, key):
        return _add(config, key, values.literal(text))
    node = find(config, key, flag, of)
    if isinstance(node, config_dict.ConfigDict):
        group = key if of == "config" else f"{of}.{key}"
        raise errors.UsageError(
            f"{flag}.{key}={text}: this is a group; set one of its keys: "
            f"{', '.join(f'{group}.{k}' for k in sorted(node))}."
        )
    value = text if isinstance(node, str) else values.literal(text)
    if isinstance(node, tuple) and not isinstance(value, (tuple, list)):
        value = names(value) if isinstance(value, str) else (value,)
    _set(config, key, value, f"{flag}.{key}={text}")


def assign(config, key: str, value, of: str = "config"):
    """Sets `config.a.b` to a value. Text is read as `override` reads it.

    A dict changes the keys of the group that is there. With a `name` it replaces the group: another
    entry of a registry has keys of its own.
    """
    if isinstance(value, str):
        return override(config, key, value, of, of)
    if _further(config, key):
        return _add(config, key, value)
    node = find(config, key, of, of)
    if not isinstance(node, config_dict.ConfigDict):
        return _set(config, key, value, f"{of}.{key}={value}")
    if not isinstance(value, dict):
        raise errors.UsageError(f"{of}.{key}={value}: this is a group; give a dict of its keys.")
    if "name" in value:
        parent, _, last = key.rpartition(".")
        group = find(config, parent, of, of) if parent else config
        with group.ignore_type():
            group[last] = config_dict.ConfigDict(value)
        return None
    for inner, changed in value.items():
        assign(config, f"{key}.{inner}", changed, of)


def find(config, key: str, flag: str = "--config", of: str = "config"):
    """The value or the group `config.a.b`; an unknown key is a UsageError with the nearest one."""
    node, parts = config, key.split(".")
    for i, part in enumerate(parts):
        known = list(node.keys()) if isinstance(node, config_dict.ConfigDict) else []
        if part not in known:
            parent = ".".join([of, *parts[:i]])
            raise errors.UsageError(
                f"{flag}.{key}: {parent} has no key {part!r}{errors.nearest(part, known)} "
                f"(known: {', '.join(sorted(known)) or 'none, it is a value'})."
            )
        node = node[part]
    return node


def _further(config, key: str) -> bool:
    """Whether `config.a.b` is not there, but `config.a` names something, which may have such a key.

    Whether it has one, runs/keys.py says.
    """
    *parents, last = key.split(".")
    for part in parents:
        config = config.get(part) if isinstance(config, config_dict.ConfigDict) else None
    is_group = isinstance(config, config_dict.ConfigDict)
    return is_group and last not in config and not NAMES.isdisjoint(config)


def _add(config, key: str, value):
    parent, _, last = key.rpartition(".")
    group = config[parent]
    with group.unlocked():
        group[last] = value


def _set(config, key: str, value, said: str):
    node = find(config, key)
    try:
        if isinstance(value, bool) and isinstance(node, (int, float)) and type(node) is not bool:
            raise TypeError("a bool is no number")  # a ConfigDict would take it for one
        config.update_from_flattened_dict({key: value})
    except (TypeError, ValueError, OverflowError) as e:
        raise errors.UsageError(
            f"{said}: wants {type(node).__name__} (now {node!r}), got {type(value).__name__}."
        ) from e


def one_or_several(value):
    """A value of a config that stays free to be a number or a tuple of them."""
    value = tuple(value) if isinstance(value, list) else value
    return config_dict.FieldReference(value, field_type=(int, float, tuple))


def names(text: str) -> tuple[str, ...]:
    """Splits a list of names as flags give it: "fd,kid" -> ("fd", "kid"); "" -> ()."""
    return tuple(filter(None, text.split(",")))


def to_json(config) -> str:
    """The whole resolved config, keys sorted, tuples as lists."""
    return json.dumps(plain(config), indent=2, sort_keys=True) + "\n"


def digest(config) -> str:
    """12 hex digits over the whole resolved config."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:12]


def plain(config) -> dict:
    """A ConfigDict as plain dicts and lists, just as it is read back from its JSON."""
    as_dict = config.to_dict() if isinstance(config, config_dict.ConfigDict) else config
    return json.loads(json.dumps(as_dict))


def from_dict(saved: dict) -> config_dict.ConfigDict:
    """The locked config of a dict that was read from JSON; its lists become tuples again."""

    def restore(value):
        if isinstance(value, dict):
            return {k: restore(v) for k, v in value.items()}
        return tuple(restore(v) for v in value) if isinstance(value, list) else value

    return config_dict.ConfigDict(restore(saved)).lock()


def difference(old, new) -> list[str]:
    """`["data.size: 64 -> 128", ...]` for every key whose value differs."""
    old, new = flat(plain(old)), flat(plain(new))
    return [
        f"{key}: {old.get(key, '(absent)')} -> {new.get(key, '(absent)')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, ...) != new.get(key, ...)
    ]


def flat(value, key: str = "") -> dict:
    """{"a.b": value} of nested dicts."""
    if not isinstance(value, dict) or not value:
        return {key.removeprefix("."): value}
    parts = [flat(inner, f"{key}.{name}") for name, inner in value.items()]
    return {k: v for part in parts for k, v in part.items()}
