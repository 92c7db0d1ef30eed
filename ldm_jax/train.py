"""Trains a first or a second stage, or goes on with one that was interrupted.

    python -m ldm_jax.train --config=configs/NAME.py[:variant] --workdir=DIR [--config.key=v ...]

--config.key=value changes any key of the config; configs/base.py lists them all. The same command
on the same workdir continues from the newest checkpoint. SIGTERM saves and exits with 42.
--config.init_from=RUN starts a new run from another's weights; --config=RUN/config.json takes its
config along.
"""

import pathlib

from absl import flags

from ldm_jax import cli
from ldm_jax.base import config as config_lib
from ldm_jax.base import platforms


def define(values):
    text = lambda *args: flags.DEFINE_string(*args, flag_values=values)
    text("config", None, "config file: path.py[:variant], or RUN/config.json")
    text("workdir", None, "folder of this run")
    text("devices", "", "what must be there over all hosts, e.g. tpu:16 or gpu; else it stops")
    flags.DEFINE_bool(
        "deterministic",
        False,
        "the same bits in every run on GPUs too, more slowly; CPUs and TPUs always do",
        flag_values=values,
    )
    flags.DEFINE_list(
        "allow_config_change",
        [],
        "keys of an existing run's config that may change, e.g. steps.total",
        flag_values=values,
    )


def main(args, overrides):
    cli.require(args, "config", "workdir")
    cli.mirror(args)
    if args.deterministic:
        platforms.set_flags(platforms.DETERMINISTIC)
    config = config_lib.load(args.config, overrides)

    from ldm_jax.engine import hosts
    from ldm_jax.training import session

    hosts.connect()
    hosts.everywhere(lambda: cli.check_writable("--workdir", args.workdir))
    found = session.train(config, args.workdir, args.allow_config_change, args.devices)
    file, lines = pathlib.Path(args.workdir) / "summary.json", session.words(args.workdir, found)
    hosts.on_first(lambda: cli.finish(file, found, lines))


if __name__ == "__main__":
    cli.start(__doc__, define, main)
