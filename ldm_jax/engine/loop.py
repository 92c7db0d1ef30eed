"""The loop: trains any stage, from nothing or from its newest checkpoint.

Everything random in a run follows from (seed, step), and metrics.jsonl is cut back to the restored
step, so what a run leaves does not depend on how often it was interrupted.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator

from ldm_jax.base import errors
from ldm_jax.engine import preempt, rollback, trainer


@dataclasses.dataclass(frozen=True)
class Intervals:
    """In optimizer steps; the last step always logs, evaluates, draws and saves."""

    total: int
    log: int
    eval: int
    checkpoint: int

    def due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.total


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is, beside its stage, its data and its programs.

    workdir: its folder.
    steps: see Intervals.
    batch_size: global rows per step.
    seed: all randomness and the order of the data follow from it.
    max_bad_steps: skipped steps in a row that the run bears, see meter.Meter.
    max_loss_spike: robust deviations of the watched loss, see rollback.Spikes; 0 bears any.
    check_replicas: steps between comparisons of what devices hold twice, which come before every
      checkpoint too, see replicas.Replicas; 0 never compares.
    keep, keep_every: newest checkpoints kept; and each divisible by `keep_every`, for good.
    snapshots: of the averages along power functions, over the whole training; see snapshots.py.
    init_from, init_grow: a run whose weights a new run starts from, "" for none, and whether its
      networks may differ; see inherit.
    profile: the first and the last step that a trace is recorded of, () for none; see profile.
    """

    workdir: pathlib.Path
    steps: Intervals
    batch_size: int
    seed: int = 0
    max_bad_steps: int = 0
    max_loss_spike: float = 0.0
    check_replicas: int = 0
    keep: int = 2
    keep_every: int = 0
    snapshots: int = 0
    init_from: str = ""
    init_grow: bool = False
    profile: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Data:
    """The batches of a run; rows are this host's share, the same number on every host.

    train: start step -> endless iterator of {field: [b, ...]}; `bad` [b] is the index of a record
      that failed and was replaced, or -1.
    held_out: () -> finite iterator of {field: [b, ...], "real": [b]}, 1 for rows that count.
    records, name: number of training records, and what to call one.
    max_bad_fraction: share of the records that may fail before the run stops.
    remedy: what helps a run that waits for its batches, in words.
    """

    train: Callable[[int], Iterator[dict]]
    held_out: Callable[[], Iterator[dict]]
    records: int
    name: Callable[[int], str]
    max_bad_fraction: float
    remedy: str = ""


class Evaluator:
    """Measures the averaged weights of a run while it trains; params: {player: tree}."""

    def __call__(self, step: int, params, frozen) -> dict:
        """{name: number}, the same on every host; empty where nothing is due at this step."""

    def pictures(self, step: int, params, frozen) -> dict:
        """{name: images [n, h, w, 3] in [-1, 1]}; by default none."""
        return {}


def train(run: trainer.Trainer):
    """Trains from where `run` stands to step `settings.steps.total`.

    Raises:
      Preempted: SIGTERM came; everything is saved.
      rollback.BadSteps: too many steps with a value that is not finite, or a loss spike.
      errors.Restart: replicas that differ; the newest checkpoint is sound.
      errors.RunError: too many records that do not decode, or a last checkpoint that the storage
        did not take.
    """
    steps, step = run.settings.steps, run.first
    try:
        with preempt.preemption() as requested:
            for step in range(run.first + 1, steps.total + 1):
                run.advance(step)
                if steps.due(step, steps.log):
                    run.log(step)
                if steps.due(step, steps.eval):
                    run.evaluate(step)
                leave = requested(step) and step < steps.total
                if steps.due(step, steps.checkpoint) or leave:
                    run.save(step)
                run.snapshot(step)
                if leave:
                    problem = run.finish_saving(step)
                    word = f"NOT saved ({problem})" if problem else "saved"
                    raise errors.Preempted(f"SIGTERM at step {step}: {word}.")
        if problem := run.finish_saving(steps.total):
            raise errors.RunError(
                f"Step {steps.total} is done but not saved ({problem}): mend the storage of "
                f"{run.checkpoints.directory} and start again."
            )
    except rollback.BadSteps as e:
        run.compare(step)  # where a device is to blame, the run has no need of other noise
        if requested(step):
            raise errors.Preempted(
                f"SIGTERM at step {step}, whose weights are not worth keeping: {e}"
            ) from e
        raise
    finally:
        run.end(step)
