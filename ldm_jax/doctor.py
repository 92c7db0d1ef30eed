"""Finds within a minute what would stop a job on this machine.

    python -m ldm_jax.doctor
    python -m ldm_jax.doctor --config=quickstart:first_stage --workdir=runs/next

Versions and devices are checked always. --config adds the config itself, a batch of its data, and
the compilation of a training step with the memory that it takes. --workdir adds that the folder can
be written and that the disk has room for the checkpoints. The exit code is 1 if a check failed.
"""

from ldm_jax import cli
from ldm_jax.base import errors

FLAGS = dict(
    config=cli.Recipe("Recipe, NAME[:variant] or path.py[:variant], or a run."),
    workdir=cli.Text("Folder of the run that is to be trained."),
    devices=cli.Text("Devices that all hosts together must have, e.g. tpu:16 or gpu.", ""),
)


def main(args, overrides):
    from ldm_jax.cost import machine
    from ldm_jax.runs import data

    if not args.config:
        cli.refuse_overrides(overrides, "there is no --config to change")
    config = data.load(args.config, overrides) if args.config else None
    checks = machine.checks(config, args.workdir, args.devices)
    failed = [name for name, check in checks.items() if not machine.passes(name, check)]
    if failed:
        raise errors.RunError(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}.")


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
