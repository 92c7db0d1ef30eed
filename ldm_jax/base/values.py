"""What a value may be: a type, written where the value is declared, is all that its check needs.

    batch_size: Positive = 32                      # a whole number of at least 1
    dropout: Fraction = 0.0                        # a number of at least 0 and below 1
    schedule: Literal["linear", "cosine"] = "linear"
    heads: Positive | tuple[Positive, ...] | None = None
    betas: Annotated[float, Number(above=0, below=1)] = 0.1

So are declared the keys of a config (base/defaults.py), the fields of what a config may name
(models, conditioners, samplers, ...) and the settings of jobs. An argument without a type is of its
default's. A bool is no number, and neither are NaN and the infinities.
"""

import abc
import ast
import dataclasses
import inspect
import numbers
import re
import types
import typing
from typing import Annotated, Any, Literal

from ml_collections import config_dict

from ldm_jax.base import errors

MOST = 2**31 - 1  # of whole numbers: counters on devices are int32
SHOWN = 60  # characters of a value in a message


class Type(abc.ABC):
    """What a value may be; words: the end of a sentence that begins with "must be"."""

    words: str

    @abc.abstractmethod
    def takes(self, value) -> bool:
        """Whether the value is one."""

    def nearest(self, value):
        """The value that may have been meant; None where there is no telling."""
        return None


@dataclasses.dataclass(frozen=True)
class Number(Type):
    """A finite number, within bounds that it may reach (least, most) or not (above, below).

    finite: False takes NaN and the infinities too, which what was measured may be.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    whole: bool = False
    finite: bool = True

    @property
    def words(self):
        kind, least, most = "whole number" if self.whole else "number", self.least, self.most
        most = None if most == MOST else most
        if least not in (None, -MOST) and most is not None:
            return f"a {kind} from {_short(least)} to {_short(most)}"
        said = {"of at least": least, "above": self.above, "of at most": most, "below": self.below}
        bounds = [f"{name} {_short(x)}" for name, x in said.items() if x not in (None, -MOST)]
        plain = f"a finite {kind}" if self.finite else f"a {kind}"
        return f"a {kind} {' and '.join(bounds)}" if bounds else plain

    def takes(self, value):
        kind = numbers.Integral if self.whole else numbers.Real
        if not isinstance(value, kind) or isinstance(value, bool):
            return False
        inside = self.least is None or value >= self.least
        inside = inside and (self.most is None or value <= self.most)
        inside = inside and (self.above is None or value > self.above)
        inside = inside and (self.below is None or value < self.below)
        free = self.whole or not self.finite
        return inside and (free or abs(value) < 1e300)  # neither NaN nor infinite

    def nearest(self, value):
        if not isinstance(value, numbers.Real) or isinstance(value, bool) or value != value:
            return None
        value = value if self.least is None else max(value, self.least)
        value = value if self.most is None else min(value, self.most)
        value = round(value) if self.whole and abs(value) < 1e300 else value
        return value if self.takes(value) else None


@dataclasses.dataclass(frozen=True)
class Switch(Type):
    """True or False."""

    words = "True or False"

    def takes(self, value):
        return isinstance(value, bool)

    def nearest(self, value):
        return bool(value) if value in (0, 1) else None


@dataclasses.dataclass(frozen=True)
class Text(Type):
    """Text in one line, such as a name or a path; with `lines`, any text."""

    lines: bool = False

    @property
    def words(self):
        return "text" if self.lines else "a line of text, of at most 255 characters a name"

    def takes(self, value):
        if self.lines:
            return isinstance(value, str)
        if not isinstance(value, str) or not value.isprintable() or len(value) > 4096:
            return False
        return all(len(part.encode()) < 256 for part in value.split("/"))  # as file systems have it


@dataclasses.dataclass(frozen=True)
class Choice(Type):
    """One of some values."""

    of: tuple

    @property
    def words(self):
        return " or ".join(map(repr, self.of))

    def takes(self, value):
        return any(type(value) is type(known) and value == known for known in self.of)

    def nearest(self, value):
        close = errors.closest(value, self.of) if isinstance(value, str) else None
        return close if close in self.of else None


@dataclasses.dataclass(frozen=True)
class Several(Type):
    """A tuple of values of one type. least, most: how many."""

    each: Type
    least: int = 0
    most: int = 10_000

    @property
    def words(self):
        some = f"{self.least} values" if self.least == self.most else "values"
        some = "one or more values" if 0 < self.least < self.most else some
        return f"{some}, each {self.each.words}"

    def takes(self, value):
        fits = isinstance(value, (tuple, list)) and self.least <= len(value) <= self.most
        return fits and all(map(self.each.takes, value))

    def nearest(self, value):
        value = value if isinstance(value, (tuple, list)) else (value,)
        if len(value) > self.most:
            return None
        found = tuple(v if self.each.takes(v) else self.each.nearest(v) for v in value)
        return found if self.takes(found) else None


@dataclasses.dataclass(frozen=True)
class Mapping(Type):
    """Names, and a value of one type for each; None: any values."""

    each: Type | None

    @property
    def words(self):
        return f"names with values, each {self.each.words}" if self.each else "names with values"

    def takes(self, value):
        named = isinstance(value, (dict, config_dict.ConfigDict))
        return named and (self.each is None or all(map(self.each.takes, value.values())))


@dataclasses.dataclass(frozen=True)
class Fields(Type):
    """Some names, each with a value of its own type; there may be others, of any type or of one."""

    of: dict[str, Type]
    others: Type | None = None

    @property
    def words(self):
        kinds = {name: kind.words for name, kind in self.of.items()}
        kinds |= {"all others": self.others.words} if self.others else {}
        return "a dict with " + ", ".join(f"{name}: {words}" for name, words in kinds.items())

    def takes(self, value):
        if not isinstance(value, (dict, config_dict.ConfigDict)) or self.of.keys() - value.keys():
            return False
        kinds = {name: self.of.get(name, self.others) for name in value}
        return all(kind is None or kind.takes(value[name]) for name, kind in kinds.items())


@dataclasses.dataclass(frozen=True)
class Either(Type):
    """A value of any of some types."""

    of: tuple[Type, ...]

    @property
    def words(self):
        return ", or ".join(kind.words for kind in self.of)

    def takes(self, value):
        return any(kind.takes(value) for kind in self.of)

    def nearest(self, value):
        found = (kind.nearest(value) for kind in self.of)
        return next((value for value in found if value is not None), None)


Natural = Annotated[int, Number(0, MOST, whole=True)]
Positive = Annotated[int, Number(1, MOST, whole=True)]
Side = Annotated[int, Number(1, 2**14, whole=True)]  # pixels of an image
Seed = Annotated[int, Number(0, 2**32 - 1, whole=True)]
Amount = Annotated[float, Number(0)]
Above0 = Annotated[float, Number(above=0)]
Share = Annotated[float, Number(0, 1)]
Fraction = Annotated[float, Number(0, below=1)]
Factor = Annotated[int, Choice(tuple(2**level for level in range(8)))]  # of downsampling
Positives = Annotated[tuple, Several(Number(1, MOST, whole=True), least=1)]

_PLAIN = {
    bool: Switch(),
    int: Number(-MOST, MOST, whole=True),
    float: Number(),
    str: Text(),
    dict: Mapping(None),
    types.NoneType: Choice((None,)),
}


class Group:
    """A group of keys: the annotations of a subclass are their types, its attributes the defaults.

    A key whose annotation is another Group is a group itself, without a default.
    """

    whole = True  # whether none of the keys may be missing


def of(annotation, default=None) -> Type | None:
    """The type that an annotation means, that of `default` where there is none; None: any value."""
    if annotation in (inspect.Parameter.empty, Any):
        if isinstance(default, tuple) and len(kinds := {of(Any, one) for one in default}) == 1:
            return Several(each) if (each := kinds.pop()) else None
        annotation = type(default) if default is not None else Any
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        own = [part for part in inner[1:] if isinstance(part, Type)]
        return own[0] if own else of(inner[0])
    if origin is Literal:
        return Choice(inner)
    if origin in (typing.Union, types.UnionType):
        kinds = tuple(map(of, inner))
        return None if None in kinds else Either(kinds)
    if origin is tuple and inner[1:] == (...,) and of(inner[0]):
        return Several(of(inner[0]))
    if origin is dict:
        return Mapping(of(inner[1]))
    return _PLAIN.get(annotation) if isinstance(annotation, type) else None


def declared(thing) -> dict[str, Any]:
    """{name: type} of a function's arguments, of a class's fields, of the keys of a Group.

    A group of a Group is its class, in the place of a type.
    """
    if _is_group(thing):
        hints = typing.get_type_hints(thing, include_extras=True)
        return {key: hint if _is_group(hint) else of(hint) for key, hint in hints.items()}
    known = inspect.signature(thing).parameters.values()
    default = lambda p: None if p.default is p.empty else p.default
    return {p.name: of(p.annotation, default(p)) for p in known}


def defaults(group: type[Group]) -> dict:
    """{key: default} of a group, and of the groups in it."""
    found = {}
    for key, kind in declared(group).items():
        value = defaults(kind) if _is_group(kind) else getattr(group, key)
        found[key] = dict(value) if isinstance(value, dict) else value
    return found


def check(key: str, value, kind: Type | None):
    """Raises UsageError unless `value` is what the type says. key: what the user calls it."""
    if kind is not None and not kind.takes(value):
        nearest = hint(value, kind)
        raise errors.UsageError(f"{key}={shown(value)} must be {kind.words}{nearest}.")


def hint(value, kind: Type) -> str:
    """ "; nearest: VALUE" where one is near, else an empty string."""
    nearest = kind.nearest(value)
    return "" if nearest is None else f"; nearest: {shown(nearest)}"


def read(text: str, kind: Type):
    """The value that a text stands for, as far as it can be one of this type."""
    if kind.takes(text):
        return text
    value = literal(text)
    if isinstance(kind, Several):
        several = value if isinstance(value, tuple) else filter(None, text.split(","))
        return tuple(read(str(part), kind.each) for part in several)
    of_floats = isinstance(kind, Number) and not kind.whole
    return float(value) if of_floats and kind.takes(value) else value


def whole(text: str) -> int:
    """The number of some digits; int() reads underscores and other alphabets' digits, too."""
    if not re.fullmatch("[-+]?[0-9]{1,30}", text.strip()):
        raise ValueError(f"{shown(text)} is no whole number")
    return int(text)


def literal(text: str):
    """The value of a Python literal; of another text the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def check_fields(value, prefix: str = ""):
    """Raises UsageError for the first field of a dataclass that is not what the class declares."""
    for name, kind in declared(type(value)).items():
        check(f"{prefix}{name}", getattr(value, name), kind)


def shown(value) -> str:
    """A value in a message: in one line, and not a long one."""
    try:
        text = " ".join((value if isinstance(value, str) else repr(value)).split())
    except (ValueError, RecursionError):  # an integer of too many digits; what holds itself
        return f"<{type(value).__name__}>"
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _is_group(thing) -> bool:
    return isinstance(thing, type) and issubclass(thing, Group)


def _short(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)
