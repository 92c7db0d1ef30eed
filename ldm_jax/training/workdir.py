"""The folder of a run in training: can the run be resumed, and with which changes of its config?"""

from ldm_jax.base import config as config_lib
from ldm_jax.base import disk, errors, remote, terminal, values
from ldm_jax.engine import checkpoint, goodput, log, meter, published, rollback
from ldm_jax.runs import keys, kinds

# The keys, or groups of keys, of a run's config that may differ when it is resumed, with the reason
# why they do not affect its numbers. No other key may change, not even those of kernels and of
# rematerialisation: XLA then fuses sums in another way, and their rounding changes.
MAY_CHANGE = {
    "limits": "say when a phase counts as stuck",
    "max_bad_steps": "says when to go back",
    "max_loss_spike": "says when to go back",
    "max_rollbacks": "says when to stop",
    "check_replicas": "only compares",
    "data.max_bad_fraction": "says when to stop",
    "data.path": "the data's fingerprint decides whether they are the same",
    "data.mix": "as data.path",
    "data.bucket_cache": "says how much of what was read is kept",
    "data.workers": "a row of a batch depends on the seed, the step and the row alone",
    "data.threads": "as data.workers",
    "checkpoints": "say which checkpoints are kept",
    "mesh": "says where the run computes; a run may move to devices that round in another way",
    "offload": "says where moments are kept between steps",
    "track": "says where the run is shown",
}

MENTIONED = 8  # changes that a message lists; with more, another run is meant


def begun(workdir) -> bool:
    """Whether the folder holds weights, to resume from or to protect."""
    steps = remote.place(workdir / "checkpoints").glob("[0-9]*")
    return any(steps) or bool(published.of(workdir))


def can_resume(workdir):
    """Raises UsageError for a run that cannot go on.

    A converted run has no optimizer's state to resume with; the lines of another may be damaged.
    """
    goodput.read(workdir)
    for file in ("metrics.jsonl", "timing.jsonl"):
        disk.read_jsonl(workdir / file, log.LINE)
    disk.read_jsonl(workdir / "rollbacks.jsonl", rollback.LINE)
    for file in workdir.glob("bad_records_*.jsonl"):
        disk.read_jsonl(file, meter.BAD_RECORD)
    try:
        trained = checkpoint.saved(workdir).get("opt")
    except errors.UsageError:
        return  # a damaged checkpoint; restoring goes back to an intact one
    if not trained:
        raise errors.UsageError(
            f"--workdir={workdir} holds weights without an optimizer's state, as converted runs "
            f"do: take a new --workdir and start from it with --config.init_from={workdir}"
        )


def claim(record, config, source, allow=()):
    """Refuses a workdir that holds another run; one without a checkpoint becomes this run's.

    That one holds nothing to protect, so any config may replace its own. The records of a run that
    is resumed stay as they are, see `describe`.

    Args:
      allow: keys besides MAY_CHANGE in which the config may differ from that of an existing run.

    Raises:
      UsageError: the workdir holds a run with another config, or of other data.
    """
    old = record.config if record.exists() else config
    has = lambda name: disk.there(record.path / name)
    known = config_lib.flat(config.to_dict()) | config_lib.flat(old.to_dict())
    if unknown := [key for key in allow if key not in known]:
        raise errors.UsageError(
            f"--allow_config_change={values.shown(unknown[0])} is no key of the config"
            f"{errors.nearest(unknown[0], known)}."
        )
    if not begun(record.path):
        record.forget("latents.json", "frozen.json", "start.json")
        if not record.is_of(config):  # a run may roll back before its first checkpoint
            record.forget("rollbacks.jsonl", "tracker.json")
        describe(record, config, source)
    elif lost := [name for name in ("config.json", *kinds.of(old).records) if not has(name)]:
        raise errors.UsageError(
            f"{record.shown} holds checkpoints and no {lost[0]}, so that nobody knows what they "
            "are of: restore it, or take another --workdir."
        )
    else:
        theirs, ours = kinds.of(old), kinds.of(config)
        if theirs is not ours:
            raise errors.UsageError(
                f"{record.shown} holds {theirs.title}, this config is of {ours.title}: "
                "take another --workdir."
            )
        free = tuple(f"{key}." for key in MAY_CHANGE)
        lines = config_lib.difference(keys.read(record.path), config)
        changed = {line.split(":")[0]: line for line in lines}
        changed = {key: line for key, line in changed.items() if not f"{key}.".startswith(free)}
        if changed.keys() - set(allow):
            said = f"{record.shown} holds a run with another config"
            lines, more = list(changed.values())[:MENTIONED], len(changed) - MENTIONED
            if more > 0:
                raise errors.UsageError(
                    f"{said} ({'; '.join(lines)}; and {more} more): take another --workdir."
                )
            raise errors.UsageError(
                f"{said} ({'; '.join(lines)}): take another --workdir, or allow it with "
                f"--allow_config_change={','.join(changed)}"
            )
        if not record.data:
            terminal.warn(
                f"warning: {record.shown} holds no data.txt, so that nobody knows whether it was "
                "trained on these data."
            )
        elif record.data != source.fingerprint:
            raise errors.UsageError(
                f"{record.shown}: the data has changed since this run began (fingerprint "
                f"{record.data}, now {source.fingerprint}); restore it, or take another --workdir."
            )


def describe(record, config, source):
    """Writes config.json and data.txt."""
    record.write_config(config)
    record.write_data(source.fingerprint)
