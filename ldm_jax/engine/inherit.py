"""A run that starts from another's weights: `config.init_from`.

Both runs may differ in everything but the parameters of the players that both have. The optimizer
starts anew, at step 0; players that the source lacks start as they would without it.

With `config.init_grow` the networks may differ too. Parameters that the source lacks start as they
would without it, those that this run lacks are left there, and kernels of more inputs here keep
theirs and start at zero for the new ones: a model of pictures becomes one of inpainting, which at
step 0 does what the source does.
"""

import itertools

import jax
import jax.numpy as jnp
from flax import traverse_util

from ldm_jax.base import errors, tree
from ldm_jax.engine import checkpoint

MANY = 12  # parameters of one part of a network that are no longer named one by one


def check(run, params: dict, grow: bool = False):
    """Raises UsageError unless `run` holds weights that players can start from.

    params: {player: its parameters' shapes}. Reads shapes alone, so it takes no device.
    """
    _common(run, checkpoint.saved(run), {"params": params, "ema": params}, grow)


def weights(state, run, shapes, averaged=(), grow: bool = False):
    """The state of step 0 with the weights of `run`, and a record of where they come from.

    shapes: the abstract state, its leaves with shardings. A moving average that the source does not
    keep starts from its weights. averaged: players whose weights start from the source's average of
    them, where it keeps one. grow: see the module; the record then lists what differs.
    """
    averages = shapes["ema"] | {name: shapes["params"][name] for name in averaged}
    wanted, differ = shapes | {"ema": averages}, {}

    def select(saved):
        differ.update(_differences(saved["params"], shapes["params"]) if grow else {})
        return _common(run, saved, wanted, grow)

    found, step = checkpoint.read(run, select)
    means = found.get("ema", {})
    began = found["params"] | {name: means[name] for name in averaged if name in means}
    origin = {"init_from": str(run), "step": step, "digest": tree.digest(began)}
    origin |= {"players": sorted(began), "ema": sorted(means)}
    whole = lambda kind: {
        name: _grown(own, state["params"][name]) for name, own in found.get(kind, {}).items()
    }
    params, ema = whole("params"), whole("ema")
    params |= {name: jax.tree.map(jnp.copy, ema[name]) for name in averaged if name in ema}
    ema = {name: ema[name] for name in ema if name in state["ema"]}
    copied = state["ema"].keys() & params.keys() - ema.keys()
    ema |= {player: jax.tree.map(jnp.copy, params[player]) for player in copied}
    state = state | {"params": state["params"] | params, "ema": state["ema"] | ema}
    return state, origin | differ


def news(origin: dict) -> list[str]:
    """Lines that name the parameters which differ, and an empty one; [] where none does."""
    said = {
        "grown": "starts at zero for its new inputs",
        "fresh": "is new and starts afresh",
        "left": "is left behind",
    }
    lines = []
    for kind, what in said.items():
        parts = itertools.groupby(origin.get(kind, ()), lambda path: path.split("/")[:3])
        for part, paths in ((part, list(paths)) for part, paths in parts):
            if len(paths) > MANY:
                paths = [f"each of {len(paths)} parameters of {'/'.join(part)}"]
            lines += [f"{path} {what}" for path in paths]
    return [*lines, ""] if lines else []


def _common(run, saved, shapes, grow) -> dict:
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
        its, own = theirs.get(path), ours.get(path)
        if its != own and not (grow and (None in (its, own) or _grows(path, its, own))):
            remedy = (
                "such a change cannot be inherited."
                if grow
                else "both need the same networks (--config=RUN/config.json), or "
                "config.init_grow=True."
            )
            raise errors.UsageError(
                f"{where}: {path} {has(its)} there and {has(own)} in this config; {remedy}"
            )
    return {
        kind: {name: _shared(own, saved[kind][name]) for name, own in players.items()}
        for kind, players in wanted.items()
        if players
    }


def _grows(path, theirs, ours) -> bool:
    """Whether a kernel differs by more inputs in ours alone."""
    same = theirs[:-2] + theirs[-1:] == ours[:-2] + ours[-1:]
    return path.endswith("/kernel") and same and theirs[-2] < ours[-2]


def _differences(saved, params) -> dict:
    """{"grown", "fresh", "left": paths} of the players that both have; see the module."""
    theirs, ours = (
        tree.shapes({name: one[name] for name in params.keys() & saved.keys()})
        for one in (saved, params)
    )
    both = theirs.keys() & ours.keys()
    return {
        "grown": sorted(path for path in both if theirs[path] != ours[path]),
        "fresh": sorted(ours.keys() - both),
        "left": sorted(theirs.keys() - both),
    }


def _shared(ours, saved):
    """What to read of a player: the leaves that both have, in the saved shape."""
    flat, theirs = traverse_util.flatten_dict(ours), traverse_util.flatten_dict(saved)

    def wanted(leaf, shape):
        if leaf.shape == shape:
            return leaf
        place = leaf.sharding
        if isinstance(place, jax.sharding.NamedSharding):  # whose axes may not divide this shape
            place = jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec())
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=place)

    some = {k: wanted(leaf, tuple(theirs[k].shape)) for k, leaf in flat.items() if k in theirs}
    return traverse_util.unflatten_dict(some)


def _grown(found, fresh):
    """A player of which `found` was read, the rest as it is in `fresh`."""
    flat, new = traverse_util.flatten_dict(found), traverse_util.flatten_dict(fresh)

    def whole(leaf, start):
        if leaf.shape == start.shape:
            return leaf
        pad = [(0, ours - its) for its, ours in zip(leaf.shape, start.shape, strict=True)]
        return jax.jit(lambda x: jnp.pad(x, pad), out_shardings=start.sharding)(leaf)

    return traverse_util.unflatten_dict(
        {k: whole(flat[k], start) if k in flat else jnp.copy(start) for k, start in new.items()}
    )
