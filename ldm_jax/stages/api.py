"""What a stage is: its players, its frozen weights, and how to judge and show it.

A player owns one subtree of `params`, one optax chain and one loss. The training step loops over
the players and does not know which stage it runs. A new term of a loss is written where the stage
is, or registered with it; a new adversary is one more player.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

Tree = Any


@dataclasses.dataclass(frozen=True)
class Player:
    """One optimised subtree.

    init: (key, measured) -> params of this player; without `measured`, (key) -> params, alike in
      shape.
    begins: the step from which it learns. Before it the player rests, and so does its optimizer:
      Adam would otherwise count the gradients of 0 that came before, and overshoot.
    every: it learns in one step of so many, from step 0, and rests in the others as before it
      begins; nor is its loss computed there. Its metrics are logged times `every` in that step and
      0 in the others, so that their means over `every` steps are right.
    measure: () -> arrays that the parameters of a new run start from, measured on its data, the
      same on every host; None where they start at random alone.
    rates: (params) -> factors of the learning rate, a tree like params; None: 1 for all.
    averaged: whether a run that starts from another run starts this player from its average.
    after: (params, gradients, key) -> params of this player after its optimizer's update: what
      changes them otherwise than by gradients. None: nothing does.
    loss: (params, frozen, batch, key, step, shared) -> (scalar, (metrics, shared)).
      `params` is `{player: tree}` of all players, differentiated in this player's subtree only;
      `shared` carries arrays from earlier players of the same step (a reconstruction, say), and
      what the loss returns as `shared` is handed on to the later ones, free of gradients.
      `metrics` is `{name: scalar}`; the scalar and the metrics are float32.
    """

    name: str
    init: Callable[..., Tree]
    loss: Callable[..., tuple]
    measure: Callable[[], Tree] | None = None
    begins: int = 0
    every: int = 1
    rates: Callable[..., Tree] | None = None
    averaged: bool = False
    after: Callable[..., Tree] | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
    """What the loop trains.

    fields: the batch fields it reads.
    players: in the order in which their losses run.
    frozen: weights that no player owns (first stage, LPIPS): an argument of the step, neither
      optimised nor checkpointed.
    evaluate: (params, frozen, batch, key) -> {name: [b]}, one value per example.
    draw: (params, frozen, batch, key) -> {name: images [n, h, w, 3] in [-1, 1]}.
    columns: {name of a drawing: images per row of its grid}.
    watched: a metric that is positive and falls while training goes well; the loop takes its jumps
      for loss spikes. "": none.
    alarms: {metric: (bound, advice)}: the log gives the advice, once, where the metric is above.
    rules: which weights of the players go over the mesh axis `tensor`, see base/shard.py.
    """

    fields: tuple[str, ...]
    players: tuple[Player, ...]
    frozen: Tree
    evaluate: Callable[..., dict]
    draw: Callable[..., dict]
    columns: dict[str, int] = dataclasses.field(default_factory=dict)
    watched: str = ""
    alarms: dict[str, tuple[float, str]] = dataclasses.field(default_factory=dict)
    rules: tuple = ()
