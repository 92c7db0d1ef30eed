"""A registry is a dict of alternatives by name; an alternative is a new entry, not a new branch."""

from ldm_jax.base import errors


class Registry:
    """Named alternatives of one kind: `@SAMPLERS.register("ddim")`, `SAMPLERS.get("ddim")`."""

    def __init__(self, kind: str):
        self.kind = kind
        self._entries = {}

    def register(self, name: str):
        """Decorator that files its function or class under `name`; a name is given once."""

        def decorate(entry):
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice.")
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

    def names(self) -> list[str]:
        return sorted(self._entries)
