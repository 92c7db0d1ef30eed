"""What a process holds of a run in training, and each thing that it does with it."""

import collections
import json

import jax
from clu import parameter_overview

from ldm_jax.base import disk, remote, shard, tree
from ldm_jax.engine import checkpoint, goodput, hosts, inherit, log, meter, replicas, rollback
from ldm_jax.engine import step as step_lib

RUN_AHEAD = 2  # steps dispatched before the host waits for the oldest


class Trainer:
    """State, batches and records of a run; `engine.loop` says what happens when.

    For the arguments see loop.train. A new one goes on from the newest checkpoint that may be
    restored.

    Attributes:
      first: the step of that checkpoint, 0 without one.
      checkpoints: of the run.
    """

    def __init__(self, stage, data, programs, settings, evaluators, history, phase):
        self.stage, self.programs, self.settings = stage, programs, settings
        self.evaluators, self.phase, self.safety = evaluators, phase, settings.safety
        self.mesh, workdir = programs.mesh, settings.workdir
        self.checkpoints = checkpoint.Checkpoints(
            workdir / "checkpoints", keep=settings.keep, every=settings.keep_every
        )
        key = shard.random_key(settings.seed, self.mesh)
        self.state, meta = self._restored_or_born(key, history.until)
        self.first = int(self.state["step"])
        news = history.begin(self.first)
        self.key = _after_rollbacks(key, history.offset, self.mesh)
        self.frozen = shard.put_replicated(stage.frozen, self.mesh)
        self._begin_records(data, meta)
        _introduce(self.logs, self.state, self.mesh, self.first, settings.steps.total, news)
        self._batches = data.train(self.first + history.offset)
        self._compare = replicas.Replicas(self.mesh)
        self._program, self._in_flight = None, collections.deque()

    def _restored_or_born(self, key, until):
        """The state and the meta of its checkpoint, {} for a state of step 0."""
        if found := self.checkpoints.restore(self.programs.state, until):
            return found
        source, measured = self.settings.init_from, {}
        if not source:
            players = [player for player in self.stage.players if player.measure]
            measured = {player.name: player.measure() for player in players}
        state = self.programs.init(key, shard.put_replicated(measured, self.mesh))
        if source:
            state, origin = inherit.weights(state, source, self.programs.state)
            if jax.process_index() == 0:
                file = self.settings.workdir / "init_from.json"
                disk.write_text(file, json.dumps(origin, indent=2) + "\n")
        return state, {}

    def _begin_records(self, data, meta):
        """Logs and counters, which go on from what the checkpoint says of them."""
        settings, safety, first = self.settings, self.safety, self.first
        workdir = settings.workdir
        self.logs = log.Log(workdir, start=first, total=settings.steps.total)
        self._meter = meter.Meter(
            meta.get("pending", ()), safety.max_bad_steps, meta.get("bad_before", 0)
        )
        self._spikes = rollback.Spikes(
            self.stage.watched, safety.max_loss_spike, first, meta.get("spikes")
        )
        self._stopwatch = meter.Stopwatch(meta.get("seconds", 0.0))
        self._bad_records = meter.BadRecords(
            workdir, records=data.records, name=data.name, max_fraction=data.max_bad_fraction
        )
        self._ledger = goodput.Ledger(workdir, first, self.phase.seconds, self.logs.active)
        self._ledger.write(first)

    def advance(self, step):
        """Takes a batch and runs one step; waits for no result but that of RUN_AHEAD steps ago."""
        self.phase.begin("step")
        batch = self._next_batch()
        program = self._compiled(batch)
        with jax.transfer_guard("disallow"):
            self.state, metrics = program(self.state, self.frozen, batch, self.key)
        self._meter.add(step, metrics)
        self._in_flight.append(metrics)
        if len(self._in_flight) > RUN_AHEAD:
            jax.block_until_ready(self._in_flight.popleft())
        if step == self.first + 1:
            jax.block_until_ready(metrics)
            self._stopwatch.restart()
            self.logs.progress.begin(step)
        self.logs.progress.update(step)
        if self.safety.check_replicas and step % self.safety.check_replicas == 0:
            self._compare(step, self._everything())

    def _next_batch(self):
        with self._stopwatch.waiting(), self.phase("data"):
            batch = next(self._batches)
        self._bad_records.count(batch.pop("bad"))
        return shard.put_batch(batch, self.mesh)

    def _compiled(self, batch):
        """The step's program, compiled for the first batch."""
        if self._program is None:
            with self.phase("compile"):
                arguments = self.state, self.frozen, batch, self.key
                self._program = hosts.compiled(self.programs.step, *arguments)
                if self.safety.check_replicas:
                    self._compare.compile(self._everything())
        return self._program

    def _everything(self) -> dict:
        """All arrays that devices hold alike."""
        return self.state | {"frozen": self.frozen}

    def log(self, step):
        """Writes the means since the last line; raises BadSteps where they tell of bad steps."""
        means = self._meter.flush()
        self._spikes.check(step, means)
        timing = self._stopwatch.measure(self.settings.batch_size)
        rates = {f"{n}/lr": float(rate(step - 1)) for n, rate in self.programs.rates.items()}
        self.checkpoints.check()
        with self.phase("save"):  # storage that stalls is not a step that is stuck
            self.logs.metrics(step, means | rates)
            self.logs.timing(step, timing)
            self._ledger.write(step)
        self.logs.progress.update(step, _headline(means, timing))

    def evaluate(self, step):
        """Writes what the evaluators say of the averaged weights, and what they draw."""
        with self._stopwatch.paused(), self.phase("eval"):
            given = step, step_lib.averaged(self.state), self.frozen
            values = {}
            for evaluator in self.evaluators:
                values |= evaluator(*given)
            self.logs.metrics(step, values)
            self.logs.progress.say(f"step {step}: {_words(values)}")
            for evaluator in self.evaluators:
                for name, images in evaluator.pictures(*given).items():
                    self.logs.images(step, name, images, self.stage.columns[name])

    def save(self, step):
        """Starts a checkpoint of `step`."""
        with self._stopwatch.paused(), self.phase("save"):
            self._save(step)

    def _save(self, step):
        # fetch() refuses a run that only skips: its newest sound checkpoint stays the newest.
        meta = {"pending": self._meter.fetch(), "bad_before": self._meter.bad_before}
        meta |= {"spikes": self._spikes.state, "seconds": self._stopwatch.total()}
        if self.safety.check_replicas:
            self._compare(step, self._everything())
        self.checkpoints.save(step, self.state, meta)

    def finish_saving(self, step) -> str:
        """Waits for the checkpoint of `step`; why it is not there, or ""."""
        with self.phase("save"):
            if self.checkpoints.wait():  # once more: by now a full disk has given up what it can
                self._save(step)
            return self.checkpoints.wait()

    def end(self, step):
        """Closes what is open; the session came to `step`."""
        self.phase.begin("start")
        self._ledger.end(step)
        self._batches.close()
        self.logs.close()
        self.checkpoints.close()


def _after_rollbacks(key, offset: int, mesh):
    """The run's key; of a run that passed over `offset` batches another one.

    A rollback would otherwise meet the noise again that may have spoilt the steps before it.
    """
    if not offset:
        return key
    return jax.jit(jax.random.fold_in, out_shardings=shard.replicated(mesh))(key, offset)


def _introduce(logs, state, mesh, first, total, news):
    """The first lines of a run: devices, parameters, where it stands."""
    sizes = ", ".join(f"{name} {tree.count(p) / 1e6:.2f}M" for name, p in state["params"].items())
    device = jax.devices()[0]
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    logs.progress.say(f"{jax.device_count()} {device.device_kind} device(s), mesh {axes}")
    where = remote.shown(logs.workdir)
    logs.progress.say(f"parameters: {sizes}; from step {first} to {total}; {where}")
    if news:
        logs.progress.say(news)
    if logs.active:
        overview = parameter_overview.get_parameter_overview(state["params"], include_stats=False)
        disk.write_text(logs.workdir / "parameters.txt", overview + "\n")


def _headline(means: dict, timing: dict) -> dict:
    losses = {name: value for name, value in means.items() if name.endswith("/loss")}
    return losses | {"images/s": timing["images_per_second"]} if timing else losses


def _words(values: dict) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
