"""Downloads that are whole, have the right hash, and are tried again where that may help.

The Hub's own library fetches the bytes, so that its settings (proxies, HF_HUB_OFFLINE) hold for all
servers; its token goes to the Hub alone.
"""

import hashlib
import os
import pathlib
import re
import sys
import time
import urllib.parse

from ldm_jax.base import errors

WAITS = (1, 3, 9, 27)  # seconds before each further try, of which a silent server gets one
PASSING = (408, 429, 500, 502, 503, 504)  # answers of a server that may be another one later
MOST_WAIT = 300  # seconds that a server may ask for


def cache() -> pathlib.Path:
    """Where this program keeps what it fetched or computed once, for this user."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "ldm_jax").expanduser()


def quiet():
    """Silences the Hub's library: its warnings become one line here, its bars are for ttys."""
    from huggingface_hub import utils

    utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        utils.disable_progress_bars()


def of_url(name: str, address: str) -> pathlib.Path:
    """The local file of URL#sha256=DIGITS, 8 to 64 of them, fetched where no cache has it.

    name: what the user calls it, for errors.

    Raises:
      UsageError: it cannot be had, or holds other bytes.
    """
    url, _, digits = address.partition("#sha256=")
    if not re.fullmatch("[0-9a-f]{8,64}", digits):
        raise errors.UsageError(
            f"{name}: write its sha256, or at least the first 8 digits of it, behind the address: "
            f"{url}#sha256=DIGITS."
        )
    base = pathlib.PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    if not base:
        raise errors.UsageError(f"{name}: this is not the address of a file.")
    target = cache() / "weights" / digits[:8] / base
    remedy = f"get {url} where there is a network, and put it at {target}, or give its path."
    hub = pathlib.Path(os.environ.get("TORCH_HOME") or cache().parent / "torch")
    for place in (target, hub / "hub" / "checkpoints" / base):  # torch's own has the same name
        if place.is_file() and _sha256(place).startswith(digits):
            return place
    from huggingface_hub.utils import WeakFileLock

    quiet()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(target.parent / f".{base}.lock"):  # another process may be at it
            if not target.is_file():
                persist(lambda: _download(url, target, digits))
            elif not (found := _sha256(target)).startswith(digits):
                raise errors.UsageError(f"{name}: {_other(target, found, digits)}: delete it.")
    except errors.UsageError:
        raise
    except Exception as e:  # no network, no space, a server that refuses
        raise errors.UsageError(f"{name}: {url} gave nothing ({reason(e)}); {remedy}") from e
    return target


def persist(action):
    """`action()`, again after a while where it failed in a way that may pass."""
    for tries, wait in enumerate((*WAITS, None)):
        try:
            return action()
        except Exception as e:
            silent = tries and status(e) is None
            if wait is None or silent or not _may_pass(e):
                raise
            time.sleep(max(wait, _asked(e)))


def status(error) -> int | None:
    """Of the server's answer, where there was one."""
    return next((response.status_code for response in _responses(error)), None)


def reason(error) -> str:
    """What the server said, or else the innermost exception, which knows best."""
    for response in _responses(error):
        return f"it says {response.status_code} {response.reason_phrase}"
    *_, innermost = _chain(error)
    return errors.reason(innermost)


def _download(url: str, file: pathlib.Path, digits: str):
    """Fetches `url` into `file`, whole and with the right hash, or not at all."""
    from huggingface_hub.file_download import http_get

    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as f:
            http_get(url, f, displayed_filename=file.name)  # without the token of the Hub
        if not (found := _sha256(part)).startswith(digits):
            raise errors.UsageError(f"{_other(url, found, digits)}: nothing was kept.")
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def _other(what, found: str, digits: str) -> str:
    return f"{what} holds other bytes (sha256 {found[:12]}..., expected {digits[:12]}...)"


def _sha256(path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _may_pass(error: Exception) -> bool:
    from huggingface_hub import errors as theirs

    if (code := status(error)) is not None:
        return code in PASSING
    certain = (errors.UsageError, theirs.HFValidationError, theirs.OfflineModeIsEnabled)
    full = lambda link: isinstance(link, OSError) and link.errno in errors.STORAGE
    return not any(isinstance(link, certain) or full(link) for link in _chain(error))


def _chain(error):
    """An exception, and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _responses(error):
    return (link.response for link in _chain(error) if getattr(link, "response", None) is not None)


def _asked(error) -> float:
    """Seconds that the server asks to wait, of at most MOST_WAIT."""
    said = next((response.headers.get("Retry-After", "") for response in _responses(error)), "")
    return min(float(said), MOST_WAIT) if said.isdecimal() else 0.0
