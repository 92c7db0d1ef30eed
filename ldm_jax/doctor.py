"""Checks a machine before a job: what would stop the training later stops here, in a minute.

    python -m ldm_jax.doctor [--config=configs/NAME.py[:variant] --workdir=DIR --devices=tpu:16]

Without a config: versions and devices. With one: the config, one record, one step compiled, and how
much of a device's memory it takes. With a workdir: that it can be written, and the free disk.
Exits with 1 where a check failed.
"""

from ldm_jax import cli
from ldm_jax.base import errors

FLAGS = dict(
    config=cli.Text("Config file, path.py[:variant]."),
    workdir=cli.Text("Folder of the run that is to be trained."),
    devices=cli.Text("Devices that must be there over all hosts, e.g. tpu:16 or gpu.", ""),
)


def main(args, overrides):
    from ldm_jax.cost import machine
    from ldm_jax.runs import data

    config = data.load(args.config, overrides) if args.config else None
    checks = machine.checks(config, args.workdir, args.devices)
    failed = [name for name, check in checks.items() if not machine.passes(name, check)]
    if failed:
        raise errors.RunError(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}.")


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
