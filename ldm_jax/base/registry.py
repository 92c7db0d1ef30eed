"""Registries: what a config may choose by name. A new alternative is an entry, not a branch."""

import inspect

from ldm_jax.base import errors, values


class Registry:
    """Named alternatives of one kind: `@SAMPLERS.register("ddim")`, `SAMPLERS.get("ddim")`.

    The options of an entry are its arguments that have a default. Options of one name mean the same
    in every entry that takes them.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries = {}

    def register(self, name: str):
        """Decorator that registers a function or class as `name`, which must be new."""

        def decorate(entry):
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice.")
            known = inspect.signature(entry).parameters if inspect.isfunction(entry) else {}
            for one in known.values():
                if one.kind is one.KEYWORD_ONLY and one.default is one.empty:
                    raise ValueError(f"{self.kind} {name!r}: option {one.name!r} has no default.")
            self._entries[name] = entry
            return entry

        return decorate

    def get(self, name: str):
        """The entry called `name`; an unknown name is a UsageError that lists the known ones."""
        if name not in self._entries:
            hint = errors.nearest(name, self._entries)
            raise errors.UsageError(
                f"Unknown {self.kind} {name!r}; registered: {', '.join(self.names())}{hint}"
            )
        return self._entries[name]

    def call(self, name: str, *args, **options):
        """Calls the entry `name` with `args` and those of `options` that it takes; see `taken`."""
        return self.get(name)(*args, **self.taken(name, **options))

    def make(self, name: str, /, **fields):
        """Calls the entry `name` with all of `fields`; one that it lacks is a UsageError."""
        known = inspect.signature(self.get(name)).parameters
        if unknown := sorted(fields.keys() - known.keys()):
            raise errors.UsageError(
                f"{self.kind} {name!r} has no key {unknown[0]!r}"
                f"{errors.nearest(unknown[0], known)}."
            )
        return self.get(name)(**fields)

    def taken(self, name: str, **options) -> dict:
        """Those of `options` that the entry `name` takes.

        The others must be at their default, as they do nothing; any other value is a UsageError.
        """
        own = self.options(name)
        for option, value in options.items():
            defaults = self.takers(option)
            if option in own or value in defaults.values():
                continue
            said = f"{option}={value} does nothing with {self.kind} {name!r}"
            if not defaults:
                raise errors.UsageError(f"{said}, nor with any other{errors.nearest(option, own)}.")
            takers, default = " or ".join(defaults), next(iter(defaults.values()))
            default = '""' if default == "" else default
            raise errors.UsageError(f"{said}, only with {takers}: leave it at {default}.")
        return {option: value for option, value in options.items() if option in own}

    def options(self, name: str) -> dict:
        """{option: default} of the entry `name`; an entry that is not called has none."""
        entry = self.get(name)
        known = inspect.signature(entry).parameters.values() if callable(entry) else ()
        return {p.name: p.default for p in known if p.default is not p.empty}

    def takers(self, option: str) -> dict:
        """{entry: its default of `option`} for the entries that take it."""
        named = {name: self.options(name) for name in self.names()}
        return {name: options[option] for name, options in named.items() if option in options}

    def declared(self) -> dict:
        """{option: what it may be} of the options of all entries; see base/values.py."""
        found = {}
        for name in self.names():
            own, kinds = self.options(name), values.declared(self.get(name))
            found |= {key: kind for key, kind in kinds.items() if key in own}
        return found

    def names(self) -> list[str]:
        return sorted(self._entries)
