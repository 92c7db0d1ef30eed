"""The errors that are meant for the user, and the exit codes they end with."""

import contextlib
import difflib

EXIT_FAILED, EXIT_USAGE, EXIT_RESTART = 1, 2, 42


class UsageError(ValueError):
    """Bad input: one line with the offender, the value and the remedy. Entry points exit with 2."""


class RunError(RuntimeError):
    """A run that cannot go on (NaN, rotten data): one line why. Entry points exit with 1."""


class Restart(Exception):
    """The same command again goes on from what is saved. Entry points exit with 42."""


class Preempted(Restart):
    """SIGTERM came and everything is saved."""


@contextlib.contextmanager
def of(key: str):
    """Puts `key: ` before the message of a UsageError that is raised inside.

    A function that checks its arguments names these; its caller, who took them from a config, adds
    where they stand there.
    """
    try:
        yield
    except UsageError as e:
        raise UsageError(f"{key}: {e}") from None


def reason(error: Exception) -> str:
    """What an exception of a library says, as one line of at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def nearest(name, known) -> str:
    """`; did you mean 'x'?` where one of `known` is close to `name`, else an empty string."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
