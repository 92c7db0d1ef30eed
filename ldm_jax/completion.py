"""Prints what makes Tab complete commands, flags and recipes.

    python -m ldm_jax.completion bash
    python -m ldm_jax.completion zsh

For bash: ldm completion bash > ~/.local/share/bash-completion/completions/ldm
For zsh:  ldm completion zsh > FOLDER/_ldm, where FOLDER is one of $fpath before compinit is called.

Or, in ~/.bashrc or ~/.zshrc, at some tenths of a second for each new shell:
eval "$(ldm completion bash)", or zsh.
"""

import importlib

from ldm_jax import cli
from ldm_jax.shell import commands, completion

VERBS = tuple(completion.SHELLS)
FLAGS = {}


def main(shell, args, overrides):
    cli.refuse_overrides(overrides, "completion has no config")
    modules = {name: importlib.import_module(f"ldm_jax.{name}") for name in commands.names()}
    print(completion.script(shell, modules), end="")


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main, verbs=VERBS)
