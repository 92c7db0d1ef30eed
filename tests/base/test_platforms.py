"""XLA's flags: which platform gets them, who has the last word, and that XLA knows them."""

import os
import subprocess
import sys

import pytest

from ldm_jax.base import platforms


def test_what_the_user_says_stays_and_nothing_is_said_twice():
    environ = {"XLA_FLAGS": "--xla_dump_to=/tmp/x"}
    for _ in range(2):
        platforms.set_flags(platforms.DETERMINISTIC, environ)
    [flag] = platforms.DETERMINISTIC
    assert environ["XLA_FLAGS"] == f"--xla_dump_to=/tmp/x {flag}"
    otherwise = {"XLA_FLAGS": flag.replace("true", "false")}
    platforms.set_flags(platforms.DETERMINISTIC, otherwise)
    assert otherwise["XLA_FLAGS"] == flag.replace("true", "false")


@pytest.mark.parametrize(
    "said, found",
    [("", "gpu"), ("cuda", "gpu"), ("gpu,cpu", "gpu"), ("cpu", "cpu"), ("tpu", "cpu")],
)
def test_a_platform_is_found_by_its_files_unless_jax_is_told_another(monkeypatch, said, found):
    monkeypatch.setattr(platforms, "HARDWARE", {"gpu": ((os.devnull,), ()), "tpu": ((), ())})
    environ = {"JAX_PLATFORMS": said} if said else {}
    assert platforms.here(environ) == found
    platforms.set_flags(environ=environ)
    assert environ.get("XLA_FLAGS", "").split() == list(platforms.FLAGS[found])


def test_xla_knows_every_flag():
    """An unknown one in XLA_FLAGS ends the process, on whatever platform."""
    flags = [flag for own in platforms.FLAGS.values() for flag in own]
    environ = os.environ | {"XLA_FLAGS": " ".join([*flags, *platforms.DETERMINISTIC])}
    argv = [sys.executable, "-c", "import jax; jax.devices()"]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
