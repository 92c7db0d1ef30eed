"""What the commands share: flags, errors as one line, exit codes.

Exit codes: 0 done; 1 failed; 2 usage or config error; 42 "restart me" (preempted, and saved).
"""

import errno
import functools
import json
import os
import pathlib
import sys
import tempfile
import traceback

from absl import flags

from ldm_jax.base import disk, errors, platforms, remote

EXIT_FAILED, EXIT_USAGE = errors.EXIT_FAILED, errors.EXIT_USAGE
EXIT_RESTART = errors.EXIT_RESTART
# What storage says of itself, and no trace of ours explains.
STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def start(doc: str, define, main, argv=None):
    """Runs one command and exits the process.

    Args:
      doc: the command's module docstring, the head of its --help.
      define: (absl FlagValues) -> None, defines the command's flags in it.
      main: (parsed FlagValues, {"a.b": "text"} config overrides) -> None.
      argv: without the program's name; sys.argv's by default.
    """
    try:
        code = run(doc, define, main, sys.argv[1:] if argv is None else argv)
    except Exception:
        traceback.print_exc()
        code = EXIT_FAILED
    if code and (hosts := sys.modules.get("ldm_jax.engine.hosts")):
        hosts.leave(code)
    sys.exit(code)


def run(doc, define, main, argv) -> int:
    """`start` without the exit: returns the exit code."""
    platforms.quiet_libraries()
    platforms.set_flags()
    values = flags.FlagValues()
    define(values)
    if {"--help", "-help", "-h", "--helpfull"} & set(argv):
        print(f"{doc.strip()}\n\n{describe(values)}")
        return 0
    try:
        overrides, rest = split_overrides(argv)
        parse(values, rest)
        main(values, overrides)
        return 0
    except errors.UsageError as e:
        return _say(e, EXIT_USAGE)
    except errors.RunError as e:
        return _say(e, EXIT_FAILED)
    except errors.Restart as e:
        return _say(e, EXIT_RESTART)
    except OSError as e:
        if e.errno not in STORAGE or not e.filename:
            raise
        return _say(f"{e.filename}: {e.strerror}", EXIT_FAILED)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    finally:
        remote.push()


def run_command(doc, define, main, argv) -> int:
    """`run` of a program whose first argument names a command: main(command or None, ...)."""
    argv = list(argv)
    command = argv.pop(0) if argv and not argv[0].startswith("-") else None
    return run(doc, define, functools.partial(main, command), argv)


def command(program: str, name: str | None, known: dict):
    """`known[name]`; a name that it lacks, or none, is a UsageError."""
    if name not in known:
        hint = errors.nearest(name or "", known)
        raise errors.UsageError(
            f"python -m ldm_jax.{program} {' | '.join(known)}: say which, first{hint}"
        )
    return known[name]


def describe(values: flags.FlagValues) -> str:
    """A line for each flag: its name, its default where it has one, what it means."""
    lines = []
    for name in values:
        flag = values[name]
        given = f"--{name}" if flag.default in (None, "", []) else f"--{name}={flag.default}"
        lines.append(f"  {given:26} {flag.help}")
    return "\n".join(lines)


def parse(values: flags.FlagValues, argv):
    """Parses into `values`; anything wrong is a UsageError."""
    try:
        rest = values(["ldm_jax", *argv])[1:]
    except flags.Error as e:
        raise errors.UsageError(" ".join(str(e).split())) from e
    if rest:
        raise errors.UsageError(f"Unexpected argument {rest[0]!r}; flags are --name=value.")


def split_overrides(argv) -> tuple[dict[str, str], list[str]]:
    """Takes `--config.a.b=v`, `--config.a.b v` out of the arguments."""
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
    return overrides, rest


def require(values: flags.FlagValues, *names: str):
    """Raises UsageError for a flag that was not given."""
    for name in names:
        if not values[name].value:
            raise errors.UsageError(f"--{name} is missing: {values[name].help}")


def mirror(args):
    """Puts the local mirror (base.remote) in place of each folder flag that names a gs:// URL.

    Raises:
      UsageError: a bucket that cannot be read or, where the command writes, written; several
        workers of one job, which would not see one another's files.
    """
    if "worker" in args and args.worker and str(args.out or "").startswith(remote.SCHEME):
        raise errors.UsageError(
            f"--worker={args.worker} with --out={args.out}: workers share a folder; mount the "
            "bucket on every host and give the mounted path."
        )
    for name in ("run", "samples", "out", "workdir"):
        if name in args and str(args[name].value or "").startswith(remote.SCHEME):
            write = name in ("out", "workdir")
            args[name].value = remote.local(args[name].value, write=write)


def check_mounted(flag: str, folder):
    """Raises UsageError for a URL, which would become a folder of that name here."""
    if "://" in str(folder):
        raise errors.UsageError(
            f"{flag}={folder}: mount the bucket (gcsfuse, Filestore) on every host and give the "
            "mounted path; gs:// itself is for train, sample, evaluate, encode, edit, adherence."
        )


def check_writable(flag: str, folder):
    """Raises UsageError where `folder`, which need not be there yet, cannot be written."""
    check_mounted(flag, folder)
    place = pathlib.Path(folder).absolute()
    while not os.path.lexists(place):
        place = place.parent
    try:
        with tempfile.TemporaryFile(prefix=".ldm_jax.", dir=place):
            pass
    except OSError as e:
        raise errors.UsageError(
            f"{flag}={folder} cannot be written ({place}: {e.strerror}): give a folder on a file "
            "system that takes files, where this user may write."
        ) from e


def finish(path, summary: dict, lines=()):
    """Writes summary.json and prints the same in a few readable lines."""

    disk.write_text(pathlib.Path(path), json.dumps(summary, indent=2) + "\n")
    width = max(map(len, summary), default=0)
    for name, value in summary.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        if not isinstance(value, (dict, list)):
            print(f"  {name:{width}}  {shown}")
    for line in (*lines, f"summary: {remote.shown(path)}"):
        print(line, flush=True)


def _say(message, code) -> int:
    print(f"ldm_jax: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    return code
