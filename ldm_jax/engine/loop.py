"""The loop: trains any stage, from nothing or from its newest checkpoint.

Everything random in a run follows from (seed, step), and metrics.jsonl is cut back to the restored
step, so what a run leaves does not depend on how often it was interrupted.
"""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator

import jax
from clu import parameter_overview

from ldm_jax.base import disk, errors, remote, shard, tree
from ldm_jax.engine import (
    checkpoint,
    goodput,
    hosts,
    inherit,
    log,
    meter,
    phases,
    preempt,
    replicas,
)
from ldm_jax.engine import rollback as rollback_lib
from ldm_jax.engine import step as step_lib
from ldm_jax.evaluation import judge as judge_lib

RUN_AHEAD = 2  # steps dispatched before the host waits for the oldest


@dataclasses.dataclass(frozen=True)
class Intervals:
    """In optimizer steps; the last step always logs, evaluates, draws and saves."""

    total: int
    log: int
    eval: int
    checkpoint: int

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if (value := getattr(self, field.name)) < 1:
                raise errors.UsageError(f"config.steps.{field.name}={value} must be at least 1.")

    def due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.total


@dataclasses.dataclass(frozen=True)
class Data:
    """The batches of a run; rows are this host's share, the same number on every host.

    train: start step -> endless iterator of {field: [b, ...]}; `bad` [b] is the index of a record
      that failed and was replaced, or -1.
    held_out: () -> finite iterator of {field: [b, ...], "real": [b]}, 1 for rows that count.
    records, name: number of training records, and what to call one.
    max_bad_fraction: share of the records that may fail before the run stops.
    """

    train: Callable[[int], Iterator[dict]]
    held_out: Callable[[], Iterator[dict]]
    records: int
    name: Callable[[int], str]
    max_bad_fraction: float


def train(
    stage,
    data: Data,
    *,
    workdir,
    mesh: jax.sharding.Mesh,
    steps: Intervals,
    optimizers: dict[str, dict],
    batch_size: int,
    seed: int = 0,
    accumulate: int = 1,
    offload: bool = False,
    keep: int = 2,
    keep_every: int = 0,
    max_bad_steps: int = 0,
    max_loss_spike: float = 0.0,
    check_replicas: int = 0,
    history: rollback_lib.History | None = None,
    phase: phases.Phases | None = None,
    init_from: str = "",
    evaluators: tuple = (),
):
    """Trains `stage` to step `steps.total`.

    Args:
      stage: stages.api.Stage.
      optimizers: {player: {"ema": decay, **arguments of optim.make_tx}}.
      batch_size: global rows per step.
      offload: keep the optimizers' moments in the host's memory.
      keep, keep_every: newest checkpoints kept; and each divisible by `keep_every`, for good.
      max_bad_steps: skipped steps in a row that are borne, see meter.Meter.
      max_loss_spike: robust deviations that are borne, see rollback.Spikes; 0 bears all.
      check_replicas: steps between comparisons of what devices hold twice, and before every
        checkpoint, see replicas.Replicas; 0 never compares.
      history: the run's rollbacks; by default it has none.
      phase: watches and counts what the run does; by default nobody watches.
      init_from: a run whose weights a new run starts from, see inherit.
      evaluators: (step, averaged params, frozen) -> {name: number} each, besides the stage's own.

    Raises:
      Preempted: SIGTERM came; everything is saved.
      rollback.BadSteps: too many steps with a value that is not finite, or a loss spike.
      errors.Restart: replicas that differ; the newest checkpoint is sound.
      errors.RunError: too many records that do not decode, or a last checkpoint that the storage
        did not take.
    """
    workdir, phase = pathlib.Path(workdir), phase or phases.Phases()
    history = history or rollback_lib.History(workdir)
    programs = step_lib.programs(
        stage,
        optimizers,
        mesh=mesh,
        total=steps.total,
        accumulate=accumulate,
        offload=offload,
        # An average of weights that start as noise forgets them; inherited ones are worth it.
        ema_warmup=not init_from,
    )

    # State: restored, or born sharded
    key = shard.random_key(seed, mesh)
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", keep=keep, every=keep_every)
    found = checkpoints.restore(programs.state, history.until)
    state, meta = found or (programs.init(key), None)
    if meta is None and init_from:
        state, origin = inherit.weights(state, init_from, programs.state)
        if jax.process_index() == 0:
            disk.write_text(workdir / "init_from.json", json.dumps(origin, indent=2) + "\n")
    meta = meta or {}
    first = int(state["step"])
    story = history.begin(first)
    if history.offset:  # other noise, too, than the rows that were passed over met
        fold_in = jax.jit(jax.random.fold_in, out_shardings=shard.replicated(mesh))
        key = fold_in(key, history.offset)
    frozen = shard.put_replicated(stage.frozen, mesh)
    judge = judge_lib.Judge(stage, data.held_out, frozen, mesh)
    compare = replicas.Replicas(mesh)

    # Records
    logs = log.Log(workdir, start=first, total=steps.total)
    metrics_meter = meter.Meter(meta.get("pending", ()), max_bad_steps, meta.get("bad_before", 0))
    spikes = rollback_lib.Spikes(stage.watched, max_loss_spike, first, meta.get("spikes"))
    stopwatch = meter.Stopwatch(meta.get("seconds", 0.0))
    bad_records = meter.BadRecords(
        workdir, records=data.records, name=data.name, max_fraction=data.max_bad_fraction
    )
    ledger = goodput.Ledger(workdir, first, phase.seconds, logs.active)
    ledger.write(first)
    _introduce(logs, state, mesh, first, steps.total, story)

    def save(step):
        # fetch() refuses a run that only skips: its newest sound checkpoint stays the newest.
        meta = {"pending": metrics_meter.fetch(), "bad_before": metrics_meter.bad_before}
        meta |= {"spikes": spikes.state, "seconds": stopwatch.total()}
        if check_replicas:
            compare(step, state | {"frozen": frozen})
        checkpoints.save(step, state, meta)

    def saved(step) -> str:
        """Waits for that checkpoint; why it is not there, or ""."""
        with phase("save"):
            if checkpoints.wait():  # once more: what a full disk could spare is gone by now
                save(step)
            return checkpoints.wait()

    # Loop
    batches, program = data.train(first + history.offset), None
    in_flight = collections.deque()
    try:
        with preempt.Preemption() as preemption:
            for step in range(first + 1, steps.total + 1):
                phase.begin("step")
                with stopwatch.waiting(), phase("data"):
                    batch = next(batches)
                bad_records.count(batch.pop("bad"))
                batch = shard.put_batch(batch, mesh)
                if program is None:
                    with phase("compile"):
                        program = hosts.compiled(programs.step, state, frozen, batch, key)
                        if check_replicas:
                            compare.compile(state | {"frozen": frozen})
                with jax.transfer_guard("disallow"):
                    state, metrics = program(state, frozen, batch, key)
                metrics_meter.add(step, metrics)
                in_flight.append(metrics)
                if len(in_flight) > RUN_AHEAD:
                    jax.block_until_ready(in_flight.popleft())
                if step == first + 1:
                    jax.block_until_ready(metrics)
                    stopwatch.restart()
                    logs.progress.begin(step)
                logs.progress.update(step)
                if check_replicas and step % check_replicas == 0:
                    compare(step, state | {"frozen": frozen})

                if steps.due(step, steps.log):
                    means = metrics_meter.flush()
                    spikes.check(step, means)
                    timing = stopwatch.measure(batch_size)
                    rates = {f"{n}/lr": float(r(step - 1)) for n, r in programs.rates.items()}
                    checkpoints.check()
                    with phase("save"):  # storage that stalls is not a step that is stuck
                        logs.metrics(step, means | rates)
                        logs.timing(step, timing)
                        ledger.write(step)
                    logs.progress.update(step, _headline(means, timing))
                if steps.due(step, steps.eval):
                    with stopwatch.paused(), phase("eval"):
                        params = step_lib.averaged(state)
                        values = judge(params)
                        for evaluator in evaluators:
                            values |= evaluator(step, params, frozen)
                        logs.metrics(step, values)
                        logs.progress.say(f"step {step}: {_words(values)}")
                        for name, images in judge.pictures(params).items():
                            logs.images(step, name, images, stage.columns[name])
                leave = preemption.requested(step) and step < steps.total
                if steps.due(step, steps.checkpoint) or leave:
                    with stopwatch.paused(), phase("save"):
                        save(step)
                if leave:
                    problem = saved(step)
                    word = f"NOT saved ({problem})" if problem else "saved"
                    raise errors.Preempted(f"SIGTERM at step {step}: {word}.")
        if problem := saved(steps.total):
            raise errors.RunError(
                f"Step {steps.total} is done but not saved ({problem}): mend the storage of "
                f"{checkpoints.directory} and start again."
            )
    except rollback_lib.BadSteps as e:
        if preemption.requested(step):
            raise errors.Preempted(
                f"SIGTERM at step {step}, whose weights are not worth keeping: {e}"
            ) from e
        raise
    finally:
        phase.begin("start")
        ledger.end(step if steps.total > first else first)
        batches.close()
        logs.close()
        checkpoints.close()


def _introduce(logs, state, mesh, first, total, story):
    """The first lines of a run: devices, parameters, where it stands."""
    sizes = ", ".join(f"{name} {tree.count(p) / 1e6:.2f}M" for name, p in state["params"].items())
    device = jax.devices()[0]
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    logs.progress.say(f"{jax.device_count()} {device.device_kind} device(s), mesh {axes}")
    where = remote.shown(logs.workdir)
    logs.progress.say(f"parameters: {sizes}; from step {first} to {total}; {where}")
    if story:
        logs.progress.say(story)
    if logs.active:
        overview = parameter_overview.get_parameter_overview(state["params"], include_stats=False)
        disk.write_text(logs.workdir / "parameters.txt", overview + "\n")


def _headline(means: dict, timing: dict) -> dict:
    losses = {name: value for name, value in means.items() if name.endswith("/loss")}
    return losses | {"images/s": timing["images_per_second"]} if timing else losses


def _words(values: dict) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
