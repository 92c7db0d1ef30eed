"""`ldm COMMAND ...`, which does what `python -m ldm_jax.COMMAND ...` does."""

import importlib
import os
import sys

import ldm_jax
from ldm_jax.base import errors
from ldm_jax.shell import commands


def main():
    name, *argv = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        return print(commands.describe())
    if name == "--version":
        return print(f"ldm_jax {ldm_jax.__version__}")
    if name not in (known := commands.names()):
        hint = errors.nearest(name, known)
        print(f"ldm: there is no command {name!r}{hint} (ldm --help lists them)", file=sys.stderr)
        sys.exit(errors.EXIT_USAGE)
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as python -m does, for config.plugins and recipes
    from ldm_jax import cli

    command = importlib.import_module(f"ldm_jax.{name}")
    doc = command.__doc__.replace("python -m ldm_jax.", "ldm ")
    verbs, words = getattr(command, "VERBS", None), getattr(command, "WORDS", "")
    cli.start(doc, command.FLAGS, command.main, argv, verbs, words)


if __name__ == "__main__":
    main()
