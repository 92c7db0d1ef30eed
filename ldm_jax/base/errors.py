"""The errors that are meant for the user, and the exit codes that a command ends with."""

import contextlib
import difflib
import errno
import re

EXIT_FAILED, EXIT_USAGE, EXIT_RESTART = 1, 2, 42
# Errors of storage, which are shown as one line: a traceback would not explain them better.
STORAGE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
)
NAMES = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)  # of a path that was given


class UsageError(ValueError):
    """Bad input. The message is one line with the offender, the value and the remedy."""

    exit_code = EXIT_USAGE


class RunError(RuntimeError):
    """A run that cannot go on (NaN, damaged data). The message is one line that says why."""

    exit_code = EXIT_FAILED


class Restart(Exception):
    """The process has to end, and the same command resumes from what is saved."""

    exit_code = EXIT_RESTART


class Preempted(Restart):
    """SIGTERM came and everything is saved."""


@contextlib.contextmanager
def of(key: str):
    """Puts a config key before the message of a UsageError.

    A check names its own arguments; only its caller knows which key of a config they came from.
    """
    try:
        yield
    except UsageError as e:
        raise UsageError(f"{key}: {e}") from None


def reason(error: Exception) -> str:
    """What an exception of a library says, as one line of at most 200 characters."""
    text = re.sub(r"<\S+ object at 0x[0-9a-f]+>", "it", " ".join(str(error).split()))
    return (text or type(error).__name__)[:200]


def nearest(name, known) -> str:
    """`; did you mean 'x'?` where one of `known` is close to `name`, else an empty string."""
    close = closest(name, known)
    return "" if close is None else f"; did you mean {close!r}?"


def closest(name, known) -> str | None:
    """The one of `known` that is close to `name`; None where none is."""
    close = difflib.get_close_matches(str(name)[:200], [str(k) for k in known], n=1, cutoff=0.5)
    return close[0] if close else None
