"""The commands: every file right under ldm_jax/ but those that they share. Nothing is imported."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).resolve().parent.parent
SHARED = ("__init__", "__main__", "cli")


def names() -> dict[str, str]:
    """{command: the first line of its docstring}."""
    files = sorted(file for file in PACKAGE.glob("*.py") if file.stem not in SHARED)
    return {file.stem: _first_line(file) for file in files}


def _first_line(file) -> str:
    return (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]


def describe() -> str:
    """What `ldm --help` prints."""
    known = names()
    lines = (f"  {name:{max(map(len, known))}}  {said}" for name, said in known.items())
    return (
        "Latent Diffusion Models in JAX: trains, samples, evaluates.\n\n"
        "    ldm COMMAND --flag=value ...    (or python -m ldm_jax.COMMAND ...)\n\n"
        + "\n".join(lines)
        + "\n\n`ldm COMMAND --help` tells a command's flags, with examples.\n"
        "`ldm list recipes` tells what --config= may be, `ldm completion bash` makes Tab know it."
    )
