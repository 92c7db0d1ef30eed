"""Snapshots of averages on disk, from which averages of other lengths are combined after training.

    RUN/averages/STEP    {player: {length: tree}}, float32, for players with `average="power"`

They are orbax steps with checksums, as checkpoints are, but none is ever replaced. A run that was
cut leaves the same snapshots as one that was not: a session first deletes those after the step that
it goes on from, and a checkpoint is begun only when the snapshots before it are on disk.
"""

import logging

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.base import errors, remote, shard
from ldm_jax.base.record import Record
from ldm_jax.engine import checkpoint, optim, power
from ldm_jax.engine import step as step_lib

logger = logging.getLogger(__name__)

FOLDER = "averages"
NOTHING = 1e-9  # a coefficient below it is rounding: an average that was kept is read, not combined


class Snapshots:
    """Takes the snapshots of a run in training.

    Args:
      lengths: Programs.lengths; without any there is nothing to do.
      number: of snapshots over the training, at equal distances; 0 takes none.
      total: steps of the training; its last step always has a snapshot.
    """

    def __init__(self, workdir, lengths: dict, number: int, total: int):
        self._lengths, self._total, self._every = lengths, total, max(1, total // max(1, number))
        self._steps = None
        if lengths and number:
            self._steps = checkpoint.Checkpoints(workdir / FOLDER, keep=1, every=1)

    def begin(self, step: int, state):
        """Makes the snapshots those of a run that stands at `step`, which it was restored to."""
        if self._steps:
            self._steps.forget_after(step)
            if self.due(step):  # the checkpoint was finished, perhaps this was not
                self.save(step, state)

    def due(self, step: int) -> bool:
        """Whether `step` has a snapshot."""
        last = step == self._total
        return self._steps is not None and step > 0 and (step % self._every == 0 or last)

    def save(self, step: int, state):
        """Starts an asynchronous save, where this step has none yet."""
        self._steps.save(step, step_lib.averages(state, self._lengths), {})

    def wait(self) -> str:
        """Blocks until the running save is on disk; why the newest save failed, or ""."""
        return self._steps.wait() if self._steps else ""

    def close(self):
        if self._steps:
            self._steps.close()


def check(run, ema, players=None):
    """Raises UsageError where a run cannot give `ema`, as of `read_params`; touches no device."""
    if not isinstance(ema, bool):
        _combinations(run, ema, players, checkpoint.finished(run, FOLDER))


def read_params(run, players: tuple[str, ...] | None = None, *, ema: bool | float = True):
    """The weights of a run, as checkpoint.read_params, with averages of any length.

    Args:
      ema: True takes the average that was evaluated in training, of the players that keep one;
        False the weights themselves; a number the average of that length at the newest snapshot.
        One snapshot is in memory at a time, beside the sum.

    Raises:
      UsageError: no checkpoint there; no player that keeps averages along power functions; a length
        that the snapshots do not give.
    """
    if isinstance(ema, bool):
        return checkpoint.read_params(run, players, ema=ema)
    steps = checkpoint.finished(run, FOLDER)
    with checkpoint.reading(run, FOLDER, alike=True) as part:
        found = None
        while found is None:
            combinations = _combinations(run, ema, players, steps)
            found = _combined(part, combinations, steps)
    names = players or tuple(checkpoint.saved(run)["params"])
    if others := tuple(name for name in names if name not in found):
        found |= checkpoint.read_params(run, others)[0]
    return found, steps[-1]


def _combinations(run, length: float, players, steps: list[int]) -> dict:
    """{player: {step: {length as text: coefficient}}}, without those that are nothing."""
    optimizers, said = Record(run).config.optim, f"ema={length:g} of {remote.shown(run)}"
    kept = {
        name: lengths
        for name in players or optimizers.keys()
        if (lengths := optim.lengths(optimizers.get(name, {"ema": 0.0})))
    }
    if not kept:
        raise errors.UsageError(
            f"{said}: the run keeps no averages of a length; take its own (--ema), or "
            f"train with average={optim.POWER!r} and ema=0.05,0.10 in config.optim."
        )
    power.exponent(length)
    if not steps:
        raise errors.UsageError(
            f"{said}: {FOLDER}/ holds no snapshot; train it longer, with config.checkpoints."
            "snapshots above 0, or take the average it was evaluated with (--ema)."
        )
    return {name: _combination(said, length, lengths, steps) for name, lengths in kept.items()}


def _combination(said, length, lengths, steps):
    each = [(step, own) for step in steps for own in lengths]
    given = *map(np.array, zip(*each)), steps[-1]
    x, missed = power.coefficients(*given, length)
    if missed > power.TOLERANCE:
        reach = power.reach(*given)
        remedy = f"they give {reach[0]:g} to {reach[1]:g}" if reach else "take one that was kept"
        raise errors.UsageError(
            f"{said}: {len(steps)} snapshots of averages of {', '.join(map(str, lengths))} miss "
            f"{missed:.0%} of its profile; {remedy}."
        )
    found = {}
    for (step, own), c in zip(each, x):
        if abs(c) > NOTHING:
            found.setdefault(step, {})[f"{own:g}"] = c
    return found


def _combined(part, combinations, steps: list[int]):
    """{player: tree}, or None where a step is damaged, which is then taken from `steps`."""
    place, found = jax.sharding.SingleDeviceSharding(jax.local_devices()[0]), {}
    for player, summands in combinations.items():
        for step, parts in summands.items():

            def select(saved, player=player, parts=parts):
                own = {length: saved[player][length] for length in parts}
                return {player: shard.abstract(own, place)}

            if (snapshot := part(step, select)) is None:
                steps.remove(step)
                return None
            for length, c in parts.items():
                own = snapshot[player][length]
                if player not in found:
                    found[player] = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), own)
                # On the host, where the order of a sum does not depend on the device.
                add = lambda sum_, x, c=c: np.add(sum_, np.float32(c) * np.asarray(x), out=sum_)
                found[player] = jax.tree.map(add, found[player], own)
    return jax.tree.map(jnp.asarray, found)
