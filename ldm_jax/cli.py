"""What the commands share: flags, errors as one line, exit codes.

A command's module has a table FLAGS, {name: flag}, and `main(args, overrides)`, which turns the
flags into one call. Exit codes: 0 done; 1 failed; 2 usage or config error; 42 "restart me"
(preempted, and saved).
"""

import ast
import contextlib
import dataclasses
import importlib
import importlib.util
import itertools
import math
import os
import pathlib
import shlex
import sys
import textwrap
import traceback
from collections.abc import Callable

from absl import flags

from ldm_jax.base import errors, platforms, remote, terminal
from ldm_jax.base import values as values_lib
from ldm_jax.base.errors import EXIT_FAILED, EXIT_RESTART, EXIT_USAGE  # noqa: F401 (for launch)
from ldm_jax.base.output import (  # noqa: F401 (for commands)
    check_file,
    check_holds,
    check_mounted,
    check_out,
    check_writable,
    finish,
)

LESS = "take a smaller batch or size, or more devices."
LONGEST = 300  # characters of a word that is printed: a path may be longer than is of use


@dataclasses.dataclass(frozen=True)
class Text(flags.ArgumentParser, flags.ArgumentSerializer):
    """A flag whose value is its text. The other kinds differ in `parse` and `serialize`.

    help: the sentence that --help prints; default: None where there is none.
    """

    help: str
    default: object = None

    def parse(self, argument):
        if not argument.isprintable():
            raise ValueError("it must be a line of text")
        return argument

    def define(self, name: str, values: flags.FlagValues):
        flags.DEFINE(self, name, self.default, self.help, values, serializer=self)

    def spelled(self, name: str) -> list[str]:
        """How the flag begins on a command line."""
        return [f"--{name}="]


@dataclasses.dataclass(frozen=True)
class Recipe(Text):
    """Names a config, see base/record.py: load. Completion offers recipes.

    under: the folder in configs/ that has them.
    """

    under: str = ""


class _Typed(Text):
    """A flag whose value is of `type`, one of base/values.py."""

    type: values_lib.Type

    def parse(self, argument):
        text = isinstance(argument, str)
        value = values_lib.read(argument, self.type) if text else argument
        if not self.type.takes(value):
            nearest = values_lib.hint(value, self.type)
            raise ValueError(f"it must be {self.type.words}{nearest}")
        return value

    def serialize(self, value):
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclasses.dataclass(frozen=True)
class Value(_Typed):
    """A value of a type of base/values.py."""

    type: values_lib.Type = values_lib.Text()


@dataclasses.dataclass(frozen=True)
class Number(_Typed):
    """A finite number from `least` to `most`, where those are given."""

    least: float | None = None
    most: float | None = None

    @property
    def type(self):
        return values_lib.Number(self.least, self.most)


@dataclasses.dataclass(frozen=True)
class Integer(_Typed):
    """A whole number from `least` to `most`."""

    least: int = -values_lib.MOST
    most: int = values_lib.MOST

    @property
    def type(self):
        return values_lib.Number(self.least, self.most, whole=True)


@dataclasses.dataclass(frozen=True)
class Switch(Text):
    """On or off: --name and --noname."""

    default: bool = False

    def define(self, name, values):
        flags.DEFINE_boolean(name, self.default, self.help, values)

    def spelled(self, name):
        return [f"--{name}"]


@dataclasses.dataclass(frozen=True)
class Average(Text):
    """Which weights of a run: --ema, --noema, or the length of an average, --ema=0.07."""

    default: object = True

    def define(self, name, values):
        flag = flags.Flag(self, self, name, self.default, self.help, boolean=True)
        flags.DEFINE_flag(flag, values)

    def parse(self, argument):
        for parser in (flags.BooleanParser(), flags.FloatParser(0.0)):
            with contextlib.suppress(ValueError, TypeError):
                return parser.parse(argument)
        raise ValueError("give --ema, --noema, or a length of the average: --ema=0.07")


@dataclasses.dataclass(frozen=True)
class Choice(Text):
    """One of the names in `of`."""

    of: tuple[str, ...] = ()

    def parse(self, argument):
        if argument not in self.of:
            hint = errors.nearest(argument, self.of)
            raise ValueError(f"use {' or '.join(filter(None, self.of))}{hint}")
        return argument


@dataclasses.dataclass(frozen=True)
class Listed(Text):
    """Values with commas between them.

    of: the values that there are, where only some are allowed; each: makes a value from its text;
    least: where it is given, the values are finite numbers of at least that.
    """

    default: tuple | None = ()
    of: tuple[str, ...] = ()
    each: Callable = str
    least: float | None = None

    def parse(self, argument):
        words = flags.ListParser().parse(argument if isinstance(argument, str) else [*argument])
        for word in words:
            if self.of and word not in self.of:
                hint = errors.nearest(word, self.of)
                raise ValueError(f"{word} is unknown: use some of {', '.join(self.of)}{hint}")
        try:
            values = [self.each(word) for word in words]
        except ValueError as e:
            kind = "numbers" if self.each is float else "whole numbers"
            raise ValueError(f"give {kind} with commas between them") from e
        if self.least is not None and not all(self.least <= v < math.inf for v in values):
            raise ValueError(f"the numbers must be finite and at least {self.least}")
        return values

    def serialize(self, value):
        return ",".join(map(str, value))


@dataclasses.dataclass(frozen=True)
class Weighted(Text):
    """Names with commas between them, each with a weight, {name: weight}: "a:0.7,b"; 1 if none."""

    default: dict = dataclasses.field(default_factory=dict)

    def parse(self, argument):
        if isinstance(argument, dict):
            return argument
        found = {}
        for word in flags.ListParser().parse(super().parse(argument)):
            name, colon, number = word.rpartition(":")
            weight = values_lib.literal(number) if colon else None
            if not values_lib.Number().takes(weight):  # a colon of the name: gs://...
                name, weight = word, 1.0
            if not name or name in found:
                raise ValueError(f"give each name once, as NAME:WEIGHT: {word}")
            found[name] = float(weight)
        return found

    def serialize(self, value):
        return ",".join(f"{name}:{weight:g}" for name, weight in value.items())


@dataclasses.dataclass(frozen=True)
class Fields:
    """A flag for each field of a dataclass that has a `help` in its metadata.

    The flags have no default, so that `given` can tell which were set. The dataclass's module may
    be slow to import, so it is imported only when the flags are defined.
    """

    module: str
    name: str

    def define(self, name, values):
        for field in self._fields():
            flag = Value(field.metadata["help"], None, values_lib.of(field.type))
            flag.define(field.name, values)

    def spelled(self, name) -> list[str]:
        """See Text; read from the source, as importing it may be slow."""
        source = pathlib.Path(importlib.util.find_spec(self.module).origin).read_text()
        tree = ast.parse(source).body
        body = next(n.body for n in tree if isinstance(n, ast.ClassDef) and n.name == self.name)
        said = (n for n in body if isinstance(n, ast.AnnAssign) and isinstance(n.value, ast.Call))
        return [f"--{field.target.id}=" for field in said]

    def given(self, args) -> dict:
        """{field: value} of the flags that were given."""
        values = {field.name: args[field.name].value for field in self._fields()}
        return {name: value for name, value in values.items() if value is not None}

    def _fields(self):
        cls = getattr(importlib.import_module(self.module), self.name)
        return [field for field in dataclasses.fields(cls) if "help" in field.metadata]


# How images are drawn, for every command that draws some.
SAMPLING = dict(
    sampling=Fields("ldm_jax.stages.sampling", "Sampling"),
    weaker=Text("Run of a less trained model of the same kind, to guide away from.", ""),
    decoder=Text("Run of a first stage that decodes, trained with config.encoder.", ""),
    adapters=Weighted(
        "Runs of adapters of the run, with weights: RUN:0.7,RUN; 1 if none is given."
    ),
    seed=Integer("Seed of the noise.", 0, least=0, most=2**32 - 1),
    ema=Average("The average of the weights, if the run keeps one; --ema=0.07: of that length."),
)


def drawing() -> tuple[str, ...]:
    """The names of the flags of SAMPLING."""
    return tuple(define(SAMPLING))


def sampling(args) -> dict:
    """{field of stages.sampling.Sampling: value} of the flags that were given."""
    return SAMPLING["sampling"].given(args)


def start(doc: str, table, main, argv=None, verbs=None, words: str = ""):
    """Runs one command and exits the process.

    Args:
      doc: the command's module docstring, the head of its --help.
      table: {name: flag}, or a function of the arguments that returns it.
      main: (parsed FlagValues, {"a.b": "text"} config overrides) -> None.
      argv: without the program's name; sys.argv's by default.
      verbs: subcommands; the first argument must name one, and main gets it as its first argument.
      words: the flag that the first arguments are values of, up to the first that begins with -.
    """
    try:
        code = run(doc, table, main, sys.argv[1:] if argv is None else argv, verbs, words)
    except BrokenPipeError:  # as behind `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _say("nobody reads the output any more", EXIT_FAILED)
    except Exception:
        traceback.print_exc()
        code = EXIT_FAILED
    if code and (hosts := sys.modules.get("ldm_jax.engine.hosts")):
        hosts.leave(code)
    sys.exit(code)


def run(doc, table, main, argv, verbs=None, words: str = "") -> int:
    """`start` without the exit: returns the exit code."""
    terminal.see_to_streams()
    platforms.quiet_libraries()
    platforms.set_flags()
    argv = list(argv)
    verb = [argv.pop(0)] if verbs and argv and not argv[0].startswith("-") else []
    argv = named(argv, words)
    try:
        if {"--help", "-help", "-h", "--helpfull"} & set(argv):
            print(doc.strip(), describe(table, argv, verbs), sep="\n\n")
            return 0
        values = define(table, argv)
        overrides = parse(values, argv)
        if verbs and (not verb or verb[0] not in verbs):
            hint = errors.nearest("".join(verb), verbs)
            raise errors.UsageError(f"The first argument must be {' | '.join(verbs)}{hint}")
        main(*verb, values, overrides)
        remote.settle()
        return 0
    except (errors.UsageError, errors.RunError, errors.Restart) as e:
        return _say(e, e.exit_code)
    except OSError as e:
        if e.errno not in errors.STORAGE + errors.NAMES:
            raise
        where = f"{e.filename}: " if e.filename else ""
        code = EXIT_USAGE if e.errno in errors.NAMES else EXIT_FAILED
        return _say(f"{where}{e.strerror}", code)
    except Exception as e:
        if not isinstance(e, MemoryError) and "out of memory" not in str(e).lower():  # of a device
            raise
        return _say(f"The memory is too small ({errors.reason(e)}): {LESS}", EXIT_FAILED)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    finally:
        remote.push()


def named(argv: list[str], words: str) -> list[str]:
    """argv with its first arguments as the flag `words`, if there is one; see `start`."""
    first = [*itertools.takewhile(lambda word: not word.startswith("-"), argv)] if words else []
    return [f"--{words}={','.join(first)}", *argv[len(first) :]] if first else argv


def call(name: str, *argv: str):
    """Runs the command ldm_jax.NAME in this process; its exceptions reach the caller."""
    said = shlex.join(["python", "-m", f"ldm_jax.{name}", *argv])
    print("$", remote.told(said), flush=True)
    values, overrides = read(name, *argv)
    importlib.import_module(f"ldm_jax.{name}").main(values, overrides)


def read(name: str, *argv: str) -> tuple[flags.FlagValues, dict[str, str]]:
    """The flags and the overrides of the command ldm_jax.NAME; a wrong one is a UsageError."""
    table = importlib.import_module(f"ldm_jax.{name}").FLAGS
    values = define(table, argv)
    return values, parse(values, argv)


def define(table, argv=()) -> flags.FlagValues:
    """The flags of a command, with their defaults."""
    values = flags.FlagValues()
    for name, flag in (table(argv) if callable(table) else table).items():
        flag.define(name, values)
    return values


def describe(table, argv=(), verbs=None) -> str:
    """What --help says below the docstring: the verbs, and a line for each flag.

    The command's own flags come first, then those that it shares with all that draw images.
    """
    table = table(argv) if callable(table) else table
    drawing = {name: flag for name, flag in table.items() if SAMPLING.get(name) is flag}
    own = {name: flag for name, flag in table.items() if name not in drawing}
    parts = [textwrap.fill(f"The first argument is one of {', '.join(verbs)}.")] if verbs else []
    parts += [f"Flags:\n{_lines(define(own))}"] if own else []
    if drawing:
        parts += [f"How images are drawn, as the run says by default:\n{_lines(define(drawing))}"]
    return "\n\n".join(parts)


def _lines(values: flags.FlagValues) -> str:
    """For each flag its name, its default if it has one, its help."""
    rows = {}
    for name in values:
        flag = values[name]
        default = flag.default
        default = ",".join(map(str, default)) if isinstance(default, list) else default
        given = f"--{name}" if default in (None, "", {}) else f"--{name}={default}"
        rows[given] = flag.help
    return "\n".join(terminal.table(rows))


def parse(values: flags.FlagValues, argv) -> dict[str, str]:
    """Parses flags into `values`; returns the overrides `--config.a.b=v` (or `--config.a.b v`).

    Anything wrong is a UsageError.
    """
    overrides, rest, argv = {}, [], list(argv)
    while argv:
        arg = argv.pop(0)
        if arg.lstrip("-").startswith("config.") and arg.startswith("-"):
            key, equals, text = arg.lstrip("-").removeprefix("config.").partition("=")
            if not equals:
                if not argv or argv[0].startswith("--"):
                    raise errors.UsageError(f"{arg} has no value; write {arg}=VALUE.")
                text = argv.pop(0)
            overrides[key] = text
        else:
            rest.append(arg)
    try:
        stray = values(["ldm_jax", *rest])[1:]
    except flags.Error as e:
        raise errors.UsageError(" ".join(str(e).split())) from e
    if stray:
        raise errors.UsageError(f"Unexpected argument {stray[0]!r}; flags are --name=value.")
    return overrides


def require(values: flags.FlagValues, *names: str):
    """Raises UsageError for a flag that was not given."""
    for name in names:
        if not values[name].value:
            raise errors.UsageError(f"--{name} is missing: {values[name].help}")


def refuse_idle(values: flags.FlagValues, taken, what: str):
    """Raises UsageError for a flag that was given and is not one of `taken`.

    taken: names; a `Fields` among the flags of the command is in it by the names of its fields.
    what: the command does with which a flag does nothing, in words.
    """
    for name in values:
        if values[name].present and name not in taken:
            raise errors.UsageError(f"--{name} does nothing with {what}: leave it out.")


def refuse_several(values: flags.FlagValues, *names: str):
    """Raises UsageError where more than one of some flags was given."""
    given = [name for name in names if values[name].present and values[name].value]
    if len(given) > 1:
        raise errors.UsageError(f"--{given[0]} and --{given[1]}: give one of them.")


def refuse_overrides(overrides: dict, why: str = "the run's own config is read"):
    """Raises UsageError where --config.* was given to a command that takes none."""
    if overrides:
        raise errors.UsageError(
            f"--config.{next(iter(overrides))}: {why}; --config.* is for train."
        )


def fill(cls, args, **others):
    """Makes a dataclass from `others` and from the flags that are named as its other fields."""
    names = [f.name for f in dataclasses.fields(cls) if f.name in args and f.name not in others]
    return cls(**{name: args[name].value for name in names}, **others)


def mirror(args):
    """Replaces each flag that names a folder on gs:// by its local mirror (see base.remote).

    Processes that share a folder (--worker, --cell) fetch of it what they need themselves.

    Raises:
      UsageError: a bucket that cannot be read or, where the command writes, written.
    """
    shared = "worker" in args or "cell" in args
    for name in ("run", "samples", "out", "workdir"):
        if name in args and str(args[name].value or "").startswith(remote.SCHEME):
            write = name in ("out", "workdir")
            whole = not (write and shared)
            args[name].value = remote.local(args[name].value, write=write, whole=whole)


def _say(message, code) -> int:
    """Prints a message as one line, in which a word is of at most LONGEST characters."""
    words = remote.told(str(message)).split()
    line = " ".join(w if len(w) <= LONGEST else f"{w[:LONGEST]}..." for w in words)
    print(terminal.tint("ldm_jax:", "red", sys.stderr), line, file=sys.stderr, flush=True)
    return code
