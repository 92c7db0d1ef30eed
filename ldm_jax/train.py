"""Trains a first or a second stage, or resumes its training.

    python -m ldm_jax.train --config=quickstart:first_stage --workdir=runs/quickstart/first_stage
    python -m ldm_jax.train --config=quickstart:ldm --workdir=runs/quickstart/ldm \\
        --config.first_stage=runs/quickstart/first_stage

--config takes a recipe by its name, which `ldm list recipes` tells, a recipe of your own as
path.py[:variant], or a run, whose config it is. --config.key=value changes any key of the config;
docs/keys.md lists them. The same command on the same workdir continues from the newest checkpoint.
SIGTERM saves and exits with 42. --config.init_from=RUN starts from the weights of RUN.
"""

import pathlib

from ldm_jax import cli
from ldm_jax.base import platforms, record

FLAGS = dict(
    config=cli.Recipe("Recipe, NAME[:variant] or path.py[:variant], or a run."),
    workdir=cli.Text("Folder of this run."),
    devices=cli.Text("Devices that all hosts together must have, e.g. tpu:16 or gpu.", ""),
    deterministic=cli.Switch("Make GPUs bit-reproducible, but slower; CPUs and TPUs always are."),
    profile_steps=cli.Text("Steps to write a trace of into WORKDIR/profile, e.g. 100:103.", ""),
    allow_config_change=cli.Listed("Keys of a run's config that may change, e.g. steps.total."),
)


def main(args, overrides):
    cli.require(args, "config", "workdir")
    cli.mirror(args)
    if args.deterministic:
        platforms.set_flags(platforms.DETERMINISTIC)
    from ldm_jax.engine import hosts
    from ldm_jax.runs import data, idle
    from ldm_jax.training import session

    config = data.load(args.config, overrides)
    hosts.connect()
    hosts.everywhere(lambda: cli.check_writable("--workdir", args.workdir))
    hosts.on_first(lambda: cli.check_holds("--workdir", args.workdir, "config.json"))
    how = args.allow_config_change, args.devices, args.profile_steps
    notes = idle.notes(config, record.load(args.config))
    found = session.train(config, args.workdir, *how, notes)
    file, lines = pathlib.Path(args.workdir) / "summary.json", session.words(args.workdir, found)
    hosts.on_first(lambda: cli.finish(file, found, lines))


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
