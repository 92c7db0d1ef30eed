"""The commands: every file right under ldm_jax/ but those that they share. Nothing is imported."""

import ast
import pathlib

from ldm_jax.base import terminal

PACKAGE = pathlib.Path(__file__).resolve().parent.parent
SHARED = ("__init__", "__main__", "cli")
HELP = """\
Latent Diffusion Models in JAX: trains, samples, evaluates.

    ldm COMMAND --flag=value ...    (or python -m ldm_jax.COMMAND ...)

{}

`ldm COMMAND --help` tells a command's flags, and has examples of what can be
done with the two runs that those of `ldm train --help` make. `ldm list recipes`
tells what --config= may be, and `ldm completion bash` makes Tab know it."""


def names() -> dict[str, str]:
    """{command: the first line of its docstring}."""
    files = sorted(file for file in PACKAGE.glob("*.py") if file.stem not in SHARED)
    return {file.stem: _first_line(file) for file in files}


def _first_line(file) -> str:
    return (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]


def describe() -> str:
    """What `ldm --help` prints."""
    return HELP.format("\n".join(terminal.table(names())))
