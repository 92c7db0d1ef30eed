"""Lists what a config may name: recipes, samplers, metrics, ...

    python -m ldm_jax.list recipes
    python -m ldm_jax.list samplers
    python -m ldm_jax.list backbones --plugins=MODULE    # with what it registers

A recipe's name, with :variant if it has some, is what --config= takes. The key that takes the names
of the other kinds is printed with them.
"""

from ldm_jax import cli
from ldm_jax.base import config as config_lib
from ldm_jax.base import terminal
from ldm_jax.shell import registries

VERBS = registries.KINDS
FLAGS = dict(plugins=cli.Listed("Modules of your own to import first, as config.plugins."))


def main(kind, args, overrides):
    cli.refuse_overrides(overrides, "list has no config")
    config_lib.import_plugins(args.plugins, "--plugins")
    found = registries.entries(kind)
    if kind in registries.REGISTRIES:
        print(f"{registries.REGISTRIES[kind][0]}:")
    print(*terminal.table(found), sep="\n")


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main, verbs=VERBS)
