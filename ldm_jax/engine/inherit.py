"""A run that starts from another's weights: `config.init_from`.

Both runs may differ in everything but the parameters of the players that both have. The optimizer
starts anew, at step 0; players that the source lacks start as they would without it.
"""

import jax
import jax.numpy as jnp

from ldm_jax.base import errors, tree
from ldm_jax.engine import checkpoint


def check(run, params: dict):
    """Raises UsageError unless `run` holds weights that players can start from.

    params: {player: its parameters' shapes}. Reads shapes alone, so it takes no device.
    """
    _common(run, checkpoint.saved(run), {"params": params, "ema": params})


def weights(state, run, shapes, averaged=()):
    """The state of step 0 with the weights of `run`, and a record of where they come from.

    shapes: the abstract state, its leaves with shardings. A moving average that the source does not
    keep starts from its weights. averaged: players whose weights start from the source's average of
    them, where it keeps one.
    """
    averages = shapes["ema"] | {name: shapes["params"][name] for name in averaged}
    wanted = shapes | {"ema": averages}
    found, step = checkpoint.read(run, lambda saved: _common(run, saved, wanted))
    params, ema = found.get("params", {}), found.get("ema", {})
    params |= {name: jax.tree.map(jnp.copy, ema[name]) for name in averaged if name in ema}
    ema = {name: ema[name] for name in ema if name in state["ema"]}
    copied = state["ema"].keys() & params.keys() - ema.keys()
    ema |= {player: jax.tree.map(jnp.copy, params[player]) for player in copied}
    state = state | {"params": state["params"] | params, "ema": state["ema"] | ema}
    origin = {"init_from": str(run), "step": step, "digest": tree.digest(params)}
    return state, origin | {"players": sorted(params), "ema": sorted(found.get("ema", {}))}


def _common(run, saved, shapes) -> dict:
    """The part of `shapes` that the saved state of `run` has, under params and ema."""
    wanted = {
        kind: {name: own for name, own in shapes[kind].items() if name in saved.get(kind, {})}
        for kind in ("params", "ema")
    }
    where = f"config.init_from={run}"
    if not wanted["params"]:
        raise errors.UsageError(
            f"{where} holds weights of {', '.join(saved['params'])}, this run trains "
            f"{', '.join(shapes['params'])}: give a run of the same stage."
        )
    ours = tree.shapes(wanted["params"])
    theirs = tree.shapes({name: saved["params"][name] for name in wanted["params"]})
    has = lambda shape: "does not exist" if shape is None else f"has shape {shape}"
    for path in sorted(theirs.keys() | ours.keys()):
        if theirs.get(path) != ours.get(path):
            raise errors.UsageError(
                f"{where}: {path} {has(theirs.get(path))} there and {has(ours.get(path))} in this "
                "config; both need the same networks (--config=RUN/config.json)."
            )
    return {kind: players for kind, players in wanted.items() if players}
