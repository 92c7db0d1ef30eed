"""A session of training, from a config to the summary of its run: all its parts, in order."""

import pathlib
import statistics
import sys

import jax

from ldm_jax.base import config as config_lib
from ldm_jax.base import disk, platforms, remote, watch
from ldm_jax.base.record import Record
from ldm_jax.engine import (
    goodput,
    hosts,
    inherit,
    log,
    loop,
    phases,
    profile,
    rollback,
    trackers,
    trainer,
)
from ldm_jax.evaluation import distances, held_out, rival
from ldm_jax.runs import check, keys, kinds
from ldm_jax.runs import data as data_lib
from ldm_jax.runs import mesh as mesh_lib
from ldm_jax.training import workdir as workdir_lib


def train(config, workdir, allow=(), devices: str = "", profile_steps: str = "", notes=()) -> dict:
    """Trains a run in `workdir`, or resumes the one that is there; returns its summary.

    Args:
      config: see base/defaults.py; keys that depend on the data are filled in here.
      allow: keys in which the config may differ from that of the run in `workdir`.
      devices: those that all hosts together must have, see hosts.check_devices.
      notes: lines to print once the config is checked.
      profile_steps: "FIRST:LAST" writes a trace of these steps, see engine/profile.py.
    """
    seconds, workdir = watch.stopwatch(), pathlib.Path(workdir)

    # Config and data, checked before any device is touched
    source = data_lib.open_source(config.data)
    notes = [*notes, *data_lib.notes(config, source)]
    config = data_lib.resolve(config, source)
    check.check(config, source)
    config = keys.complete(config)
    trackers.check(**config.track)
    traced = profile.window(profile_steps, config.steps.total)
    kind, record = kinds.of(config), Record(workdir)
    cache = kind.open_cache(config, source)
    request = distances.request(config)

    # Hosts and devices
    hosts.agree(
        code_version=hosts.code_version(),
        jax_version=jax.__version__,
        config=config_lib.digest(config),
        data=source.fingerprint,
    )
    hosts.check_devices(devices)
    mesh = mesh_lib.make_mesh(config)

    # Workdir: of a run to resume, or of a new one; no other process may write there
    if workdir_lib.begun(workdir):
        workdir_lib.can_resume(workdir)
    elif config.init_from:
        inherit.check(config.init_from, kind.shapes(config), config.init_grow)
    with hosts.owned("--workdir", workdir):
        hosts.on_first(lambda: workdir_lib.claim(record, config, source, allow))
        hosts.on_first(lambda: [print(line, file=sys.stderr) for line in notes])
        platforms.cache_compilations(workdir / "compilation_cache")

        # Stage, data and settings
        stage = kind.begin(config, source, record, cache)
        data = data_lib.make(config, source, stage.fields, cache=cache)
        names = "batch_size", "seed", "max_bad_steps", "max_loss_spike", "check_replicas"
        names += "init_from", "init_grow"
        own = {name: config[name] for name in names} | config.checkpoints.to_dict()
        own["profile"] = traced
        settings = loop.Settings(workdir, loop.Intervals(**config.steps), **own)

        # Loop; after bad steps, a second one from an older checkpoint
        report = workdir / f"hang_{hosts.index():04d}.txt"
        watched = phases.Phases(dict(config.limits), report)
        with trackers.tracking(config, record) as sinks, hosts.losses(), watched as phase:
            programs = kinds.programs(config, stage, mesh)
            evaluators = [held_out.HeldOutRecords(stage, data.held_out, mesh)]
            if kind.rival(config):
                evaluators.append(rival.Rival(config, source, record))
            if request:
                evaluators.append(distances.Distances(request, config, source, mesh))
            parts = stage, data, programs, settings, evaluators

            def train_on(history):
                run = trainer.Trainer(*parts, history, phase, sinks)
                # Now the state was restored: a config that does not fit it would have been refused.
                hosts.on_first(lambda: workdir_lib.describe(record, config, source))
                loop.train(run)

            rollback.with_rollbacks(train_on, workdir, config.max_rollbacks)

        # Summary
        return hosts.on_first(lambda: summary(workdir, config.steps.total, seconds()))


def summary(workdir, steps: int, seconds: float) -> dict:
    """The summary of a run: the newest value of every metric, its speed and its goodput."""
    newest = {}
    for line in disk.read_jsonl(workdir / "metrics.jsonl", log.LINE):
        newest |= line
    timing = disk.read_jsonl(workdir / "timing.jsonl", log.LINE)
    rates = [line["images_per_second"] for line in timing if "images_per_second" in line]
    found = {"steps": steps, "seconds": seconds}
    if rates:
        found["images_per_second"] = statistics.median(rates)
    newest.pop("step", None)
    held_out = {name: value for name, value in newest.items() if name.startswith("val/")}
    found |= {name.removeprefix("val/"): value for name, value in held_out.items()}
    found["train"] = {name: value for name, value in newest.items() if name not in held_out}
    return found | {"goodput": goodput.report(workdir)}


def words(workdir, summary: dict) -> list[str]:
    """Lines to print below the numbers of a summary."""
    pictures = remote.shown(pathlib.Path(workdir) / "images")
    return [f"goodput: {goodput.words(summary['goodput'])}", f"pictures: {pictures}"]
