"""Prints what makes Tab complete commands, flags, keys and recipes behind `ldm`.

    python -m ldm_jax.completion bash
    python -m ldm_jax.completion zsh

For bash: ldm completion bash > ~/.local/share/bash-completion/completions/ldm
For zsh:  ldm completion zsh > FOLDER/_ldm, where FOLDER is one of $fpath before compinit is called.

Or, in ~/.bashrc or ~/.zshrc, at some tenths of a second for each new shell:
eval "$(ldm completion bash)", or zsh.
"""

from ldm_jax import cli
from ldm_jax.shell import completion

VERBS = tuple(completion.SHELLS)
FLAGS = {}


def main(shell, args, overrides):
    cli.refuse_overrides(overrides, "completion has no config")
    print(completion.script(shell), end="")


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main, verbs=VERBS)
