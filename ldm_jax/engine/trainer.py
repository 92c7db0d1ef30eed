"""What a process holds of a run in training, and each thing that it does with it."""

import collections
import logging

import jax
from clu import parameter_overview

from ldm_jax.base import disk, errors, remote, shard, tree
from ldm_jax.base.record import Record
from ldm_jax.engine import checkpoint, goodput, hosts, inherit, log, meter, replicas, rollback
from ldm_jax.engine import profile as profile_lib
from ldm_jax.engine import snapshots as snapshots_lib
from ldm_jax.engine import step as step_lib

logger = logging.getLogger(__name__)

RUN_AHEAD = 2  # steps dispatched before the host waits for the oldest


class Trainer:
    """State, batches and records of a run; `engine.loop` says what happens when.

    A new one goes on from the newest checkpoint that may be restored.

    Args:
      stage, data, programs, settings: api.Stage, loop.Data, step.Programs, loop.Settings; a stage's
        programs serve any number of sessions.
      evaluators: loop.Evaluator each; their numbers go to metrics.jsonl in this order.
      history: the run's rollbacks.
      phase: phases.Phases, which watches and counts what the run does.
      sinks: sinks.Sink each, which show the run beside TensorBoard.

    Attributes:
      first: the step of that checkpoint, 0 without one.
      checkpoints: of the run.
    """

    def __init__(self, stage, data, programs, settings, evaluators, history, phase, sinks=()):
        self.stage, self.programs, self.settings = stage, programs, settings
        self.evaluators, self.phase, self.mesh = evaluators, phase, programs.mesh
        self.checkpoints = checkpoint.Checkpoints(
            settings.workdir / "checkpoints", keep=settings.keep, every=settings.keep_every
        )
        self.key = shard.random_key(settings.seed, self.mesh)
        self.state, meta = self._restored_or_born(history.until)
        self.first = int(self.state["step"])
        self._snapshots = snapshots_lib.Snapshots(
            settings.workdir, programs.lengths, settings.snapshots, settings.steps.total
        )
        self._snapshots.begin(self.first, self.state)
        news = history.begin(self.first)
        if history.offset:  # else the noise that may have spoilt the steps before would come again
            fold = jax.jit(jax.random.fold_in, out_shardings=shard.replicated(self.mesh))
            self.key = fold(self.key, history.offset)
        self.frozen = shard.put_replicated(stage.frozen, self.mesh)
        self._begin_records(data, meta, sinks)
        self._introduce(news)
        self._batches = data.train(self.first + history.offset)
        self._program = self._compare = None
        self._in_flight = collections.deque()

    def _restored_or_born(self, until):
        """The state and the meta of its checkpoint, {} for a state of step 0."""
        if found := self.checkpoints.restore(self.programs.state, until):
            return found
        source, measured = self.settings.init_from, {}
        if not source:
            players = [player for player in self.stage.players if player.measure]
            measured = {player.name: player.measure() for player in players}
        state = self.programs.init(self.key, shard.put_replicated(measured, self.mesh))
        if source:
            averaged = [player.name for player in self.stage.players if player.averaged]
            how = dict(averaged=averaged, grow=self.settings.init_grow)
            state, origin = inherit.weights(state, source, self.programs.state, **how)
            if jax.process_index() == 0:
                Record(self.settings.workdir).write(init_from=origin)
                print(*inherit.news(origin), sep="\n", end="", flush=True)
        return state, {}

    def _begin_records(self, data, meta, sinks):
        """Logs and counters, which go on from what the checkpoint says of them."""
        settings, workdir, first = self.settings, self.settings.workdir, self.first
        damaged = self.checkpoints.damaged
        how = dict(total=settings.steps.total, kept=bool(damaged), sinks=sinks)
        self.logs = log.Log(workdir, start=first, **how)
        if damaged and not first:
            logger.error(
                "ALARM: no checkpoint of %s can be read (%s): training starts again at step 0, and "
                "metrics.jsonl is kept as metrics.jsonl.old.",
                workdir,
                ", ".join(f"{step}.corrupt" for step in damaged),
            )
        self._meter = meter.Meter(settings.max_bad_steps, meta)
        self._remedy = data.remedy
        self._spikes = rollback.Spikes(self.stage.watched, settings.max_loss_spike, first, meta)
        self._alarmed, self._overview = set(), workdir / "parameters.txt"
        self._stopwatch = meter.Stopwatch(self.phase.seconds)
        self._bad_records = meter.BadRecords(workdir, data)
        self._ledger = goodput.Ledger(workdir, first, self.phase.seconds, self.logs.active)
        self._ledger.write(first)
        where, say = workdir / "profile", self.logs.progress.say
        steps = settings.profile if self.logs.active else ()
        self._profile = profile_lib.Profile(steps, where, say)

    def _introduce(self, news):
        """The first lines of a run, devices, parameters, where it stands, and parameters.txt."""
        say, params = self.logs.progress.say, self.state["params"]
        axes = " x ".join(f"{name} {size}" for name, size in self.mesh.shape.items())
        say(f"{jax.device_count()} {jax.devices()[0].device_kind} device(s), mesh {axes}")
        sizes = ", ".join(f"{name} {tree.count(p) / 1e6:.2f}M" for name, p in params.items())
        where = f"from step {self.first} to {self.settings.steps.total}"
        say(f"parameters: {sizes}; {where}; {remote.shown(self.logs.workdir)}")
        if news:
            self.logs.alarm(news)
        if self.logs.active:
            overview = parameter_overview.get_parameter_overview(params, include_stats=False)
            disk.write_text(self._overview, overview + "\n")

    def advance(self, step):
        """Takes a batch and runs one step; waits for no result but that of RUN_AHEAD steps ago."""
        self.phase.begin("step")
        with self.phase("data"):
            batch = next(self._batches)
        self._bad_records.count(batch.pop("bad"))
        batch = shard.put_batch(batch, self.mesh)
        if self._program is None:
            self._compile(batch)
        self._profile.before(step, self._in_flight)
        with self._profile.step(step), jax.transfer_guard("disallow"):
            self.state, metrics = self._program(self.state, self.frozen, batch, self.key)
        self._meter.add(step, metrics)
        self._in_flight.append(metrics)
        if self._profile.ends(step):
            with self.phase("save"):  # which may take a minute, and is not a step that is stuck
                self._profile.close(step, metrics)
        if len(self._in_flight) > RUN_AHEAD:
            jax.block_until_ready(self._in_flight.popleft())
        if step == self.first + 1:
            jax.block_until_ready(metrics)
            self.phase.begin("step")  # without what compiling left to do at the first call
            self._stopwatch.restart(step)
            self.logs.progress.begin(step)
        self.logs.progress.update(step)
        if self.settings.check_replicas and step % self.settings.check_replicas == 0:
            self.compare(step)

    def _compile(self, batch):
        with self.phase("compile"):
            given = self.state, self.frozen, batch, self.key
            self._program = hosts.compiled(self.programs.step, *given)
            if self.settings.check_replicas:
                self._compare = replicas.Replicas(self.mesh, self._everything())

    def compare(self, step):
        """Raises Restart where devices hold other bits of the same arrays, if that is asked for."""
        if self.settings.check_replicas and self._compare:
            self._compare(step, self._everything())

    def _everything(self) -> dict:
        """All arrays that devices hold alike."""
        return self.state | {"frozen": self.frozen}

    def log(self, step):
        """Writes the means since the last line; raises BadSteps where they tell of bad steps."""
        self._stay()
        means = self._meter.flush()
        self._spikes.check(step, means)
        for name, (bound, advice) in self.stage.alarms.items():
            if means.get(name, 0.0) > bound and name not in self._alarmed:
                self._alarmed.add(name)
                self.logs.alarm(f"step {step}: {name} {means[name]:.3g}: {advice}.")
        rates = {f"{n}/lr": float(rate(step - 1)) for n, rate in self.programs.rates.items()}
        self.checkpoints.check()
        with self.phase("save"):  # storage that stalls is not a step that is stuck
            timing = self._stopwatch.measure(step, self.settings.batch_size)
            self._tell_of_wait(step, timing)
            self.logs.write("metrics.jsonl", step, means | rates)
            self.logs.write("timing.jsonl", step, timing)
            self.logs.show(step, self._ledger.write(step))
        shown = {name: value for name, value in means.items() if name.endswith("/loss")}
        shown |= {"images/s": timing["images_per_second"]} if timing else {}
        self.logs.progress.update(step, shown)

    def _tell_of_wait(self, step, timing):
        """Says once that the run waits for its data, and what helps."""
        if self._stopwatch.starved and "data" not in self._alarmed:
            self._alarmed.add("data")
            share = timing["data_wait_fraction"]
            wait = f"{share:.0%} of the time is spent waiting for data"
            self.logs.alarm(f"step {step}: {wait}: {self._remedy}.")

    def evaluate(self, step):
        """Writes what the evaluators say of the averaged weights, and what they draw."""
        with self.phase("eval"):
            given = step, step_lib.averaged(self.state), self.frozen
            values = {}
            for evaluator in self.evaluators:
                values |= evaluator(*given)
            self.logs.write("metrics.jsonl", step, values)
            words = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            self.logs.progress.say(f"step {step}: {words}")
            for evaluator in self.evaluators:
                for name, images in evaluator.pictures(*given).items():
                    self.logs.images(step, name, images, self.stage.columns[name])

    def _stay(self):
        """Raises RunError where the folder of the run is gone: what is written would be no run."""
        try:
            self._overview.stat() if self.logs.active else None
        except FileNotFoundError as e:
            raise errors.RunError(
                f"{remote.shown(self._overview)} has vanished: the folder of this run was moved or "
                "deleted while it was training."
            ) from e
        except OSError:  # storage that fails now may be back later
            return

    def save(self, step):
        """Starts a checkpoint of `step`."""
        self._stay()
        with self.phase("save"):
            # This refuses a run that only skips: its newest sound checkpoint stays the newest.
            meta = self._meter.meta()
            self.compare(step)
            self._snapshots.wait()  # no session that goes on from this step would take them again
            meta |= self._spikes.meta()
            self.checkpoints.save(step, self.state, meta, self.logs.settle)

    def snapshot(self, step):
        """Starts a snapshot of the averages, where one is due; after the checkpoint of `step`."""
        if self._snapshots.due(step):
            with self.phase("save"):
                self._snapshots.save(step, self.state)

    def finish_saving(self, step) -> str:
        """Waits for the checkpoint and the snapshot of `step`; why one is not there, or ""."""
        with self.phase("save"):
            if self.checkpoints.wait():  # once more: by now a full disk has given up what it can
                self.save(step)
            return self.checkpoints.wait() or self._snapshots.wait()

    def end(self, step):
        """Closes what is open; the session came to `step`."""
        self.phase.begin("start")
        self._ledger.end(step)
        self._profile.close(step)
        self._batches.close()
        self.logs.close()
        for part in (self._snapshots, self.checkpoints):
            try:
                part.close()
            except Exception as e:  # of a save that failed; why the session ended is raised
                logger.error("ALARM: a save did not end well (%s).", errors.reason(e))
