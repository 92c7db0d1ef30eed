"""Trackers: services that show many runs side by side, as `config.track.name` says.

A tracker is one more sink beside TensorBoard. It is opened and called on a thread of its own behind
a bounded queue, so that no network can slow a step; whatever fails there costs a line, and the run
goes on without it. The run's id is kept in tracker.json: a run that was cut stays one curve.
"""

import contextlib
import importlib.util
import logging
import pathlib
import queue
import secrets
import sys
import threading
import time

from ldm_jax.base import config as config_lib
from ldm_jax.base import errors, registry
from ldm_jax.engine import hosts, sinks

logger = logging.getLogger(__name__)

TRACKERS = registry.Registry("tracker")
WAITING = 256  # calls that may wait for the tracker; what comes beyond is left out
FAREWELL = 20.0  # seconds that a tracker has at the end for what still waits


class Tracker:
    """One run at a service; a subclass is registered. Its thread alone makes it and calls it.

    It is made with the run's id, its title, its folder and its config (a dict of plain values),
    then the keys of `config.track` that it takes. What it raises ends the tracking and not the run.

    Attributes:
      package: that has to be installed; "" for none.
      where: what a user needs to find the run, in a line.
    """

    package = ""
    where = ""

    def numbers(self, step: int, values: dict):
        """Steps may come again, and smaller than before, after a rollback or a resume."""

    def picture(self, step: int, name: str, picture):
        """picture: uint8 [h, w, 3]."""

    def alarm(self, text: str):
        """A line of text."""

    def close(self, failed: bool):
        """The session ends; failed: by an error after which it is not simply started again."""


@TRACKERS.register("wandb")
class Wandb(Tracker):
    """Weights & Biases. Its own steps must not fall, so ours are a number and the axis of all."""

    package = "wandb"

    def __init__(self, run_id, title, folder, config, project="ldm_jax", entity=""):
        import wandb

        # A question for the key would be asked from a thread, below the progress of the training.
        online = wandb.setup().settings.mode == "online"
        if online and not wandb.login(prompt=False):
            raise RuntimeError("no key: run `wandb login`, or set WANDB_API_KEY or WANDB_MODE")
        self._run = wandb.init(
            id=run_id,
            name=title,
            dir=str(folder),
            config=config,
            project=project,
            entity=entity or None,
            resume="allow",
            allow_val_change=True,
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="step")
        self._image = wandb.Image
        self.where = self._run.url if online else f"wandb sync {folder}/wandb/*-{run_id}"

    def numbers(self, step, values):
        self._run.log({"step": step} | values)

    def picture(self, step, name, picture):
        self.numbers(step, {name: self._image(picture)})

    def alarm(self, text):
        self._run.alert("ldm_jax", text)

    def close(self, failed):
        self._run.finish(exit_code=int(failed))


@TRACKERS.register("trackio")
class Trackio(Tracker):
    """trackio, which keeps runs on this machine or in a Space of Hugging Face; W&B's functions.

    A run is resumed by its name, so that the name holds the id. It says by itself where it writes.
    """

    package = "trackio"

    def __init__(self, run_id, title, folder, config, project="ldm_jax"):
        import trackio

        name = f"{title}-{run_id}"
        how = dict(name=name, config=config, project=project, resume="allow", embed=False)
        self._run, self._image = trackio.init(**how), trackio.Image
        self.where = f"trackio show --project {project}"

    def numbers(self, step, values):
        self._run.log(values, step=step)

    def picture(self, step, name, picture):
        self.numbers(step, {name: self._image(picture)})

    def alarm(self, text):
        self._run.alert("ldm_jax", text)

    def close(self, failed):
        self._run.finish()


def check(name: str, **options):
    """Raises UsageError for `config.track` if it names no tracker, or one that is not installed."""
    if not name:
        return
    with errors.of("config.track"):
        TRACKERS.taken(name, **options)
    package = TRACKERS.get(name).package
    if package and importlib.util.find_spec(package) is None:
        raise errors.UsageError(
            f"config.track.name={name} needs the package {package}, which is not installed: "
            f"pip install {package}, or leave the key out."
        )


@contextlib.contextmanager
def tracking(config, record):
    """The sinks of a session, whose run `record` describes: a tracker on host 0, or none.

    Alarms of all parts of ldm_jax go to it, and why the session ended where it failed.
    """
    if not config.track.name or hosts.index():
        yield ()
        return
    name, options = config.track.name, {k: v for k, v in config.track.items() if k != "name"}
    ids = record.tracker
    if name not in ids:
        record.write(tracker=ids | {name: secrets.token_hex(4)})
    run_id, title = record.tracker[name], pathlib.PurePath(record.shown).name
    known = run_id, title, record.path, config_lib.plain(config)
    sink = OffThread(name, lambda: TRACKERS.call(name, *known, **options))
    handler, failed = _Alarms(sink), False
    logging.getLogger("ldm_jax").addHandler(handler)
    try:
        yield (sink,)
    except BaseException as e:
        failed = not isinstance(e, errors.Restart)
        sink.alarm(errors.reason(e))
        raise
    finally:
        logging.getLogger("ldm_jax").removeHandler(handler)
        sink.close(failed)


class OffThread(sinks.Sink):
    """A tracker on a thread of its own.

    Args:
      name: for messages.
      make: () -> Tracker, called on the thread.
    """

    def __init__(self, name: str, make):
        self._name, self._make = name, make
        self._queue, self._full = queue.Queue(WAITING), False
        self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)
        self._thread.start()

    def numbers(self, step, values):
        self._call("numbers", step, values)

    def picture(self, step, name, picture):
        self._call("picture", step, name, picture)

    def alarm(self, text):
        self._call("alarm", text)

    def close(self, failed: bool):
        """Waits FAREWELL seconds at most for what the tracker has still to do."""
        until = time.monotonic() + FAREWELL
        left = lambda: max(0.0, until - time.monotonic())
        with contextlib.suppress(queue.Full):
            self._queue.put(("close", failed), timeout=left() if self._thread.is_alive() else 0)
        self._thread.join(left())
        if self._thread.is_alive():
            self._warn(f"did not end within {FAREWELL:.0f} s")

    def _call(self, *call):
        if not self._thread.is_alive():
            return
        try:
            self._queue.put_nowait(call)
        except queue.Full:
            if not self._full:
                self._full = True
                self._warn("is slower than the run and will miss some of it")

    def _run(self):
        try:
            tracker, method = self._make(), ""
            print(f"tracking: {tracker.where}", file=sys.stderr, flush=True)
            while method != "close":
                method, *args = self._queue.get()
                getattr(tracker, method)(*args)
        except (Exception, SystemExit) as e:  # services fail in many ways
            self._warn(f"failed ({errors.reason(e)})")

    def _warn(self, what: str):
        told = "The tracker %s %s. Training goes on, and the files of the run have it all."
        logger.warning(told, self._name, what)


class _Alarms(logging.Handler):
    """Hands the ALARM lines of the log to a sink."""

    def __init__(self, sink):
        super().__init__(logging.ERROR)
        self._sink = sink

    def emit(self, record):
        self._sink.alarm(record.getMessage())
