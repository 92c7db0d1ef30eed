"""Rules between foreign checkpoint keys and our parameter paths, applied with strict accounting.

A table is a list of `Rule`s, one per layer, weight and bias together. Every foreign key must match
a rule or an ignored pattern, and every parameter of ours must be filled, or conversion stops and
says what is off. A table whose keys are literal (diffusers') works in both directions.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from flax import traverse_util

from ldm_jax.base import errors, tree


class Rule(NamedTuple):
    """One layer: the regex of its foreign key up to `.weight` or `.bias`, and our path.

    Named groups of `key` fill the template `path`.

    kind: "conv" (OIHW -> HWIO), "dense" ((out, in, 1...) -> (in, out)), "1x1" (the same, of a
    foreign convolution), "norm", "table" (an embedding), "array", where the path is the leaf
    itself, or "bare": an array whose key is complete, without `.weight`.
    part, parts: this layer is one of several joined along the output, like q, k and v.
    layer, layers: ours is a stack of so many layers along its first axis, and this is one of them;
    0 layers: it is no stack.
    reorder: applied to the foreign array, weight and bias alike, before anything else.
    """

    key: str
    path: str
    kind: str
    part: int = 0
    parts: int = 1
    layer: int = 0
    layers: int = 0
    reorder: Callable | None = None


WEIGHT_LEAF = dict.fromkeys(("conv", "dense", "1x1"), "/kernel")
WEIGHT_LEAF |= {"norm": "/scale", "table": "/embedding", "array": "", "bare": ""}


def under(prefix: str, state: dict) -> dict:
    """The part of a state dict whose keys begin with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def apart(state: dict, pattern: str, names: str) -> dict:
    """Queries, keys and values, one array under a key of this pattern, each under a key of its own.

    names: format of that key, of the match `m` and of `name`, which is q, k or v.
    """
    found = {}
    for key, value in state.items():
        if match := re.fullmatch(pattern, key):
            parts = zip("qkv", np.split(np.asarray(value), 3))
            found |= {names.format(m=match, name=name): part for name, part in parts}
        else:
            found[key] = value
    return found


def within(places, layers):
    """The rules of layers that stand at many places, each place a (key, path) to put in front."""
    return [
        rule._replace(key=key + rule.key, path=path + rule.path)
        for key, path in places
        for rule in layers
    ]


def stacked(places, depth: int, layers):
    """The rules of `depth` layers that are one stack of ours; (key, path) of `places` holds {i}
    for the number of a layer, and leads to the stack."""
    return [
        rule._replace(layer=i, layers=depth)
        for i in range(depth)
        for rule in within([(key.format(i=i), path) for key, path in places], layers)
    ]


def convert(state, rules, ignore=(), expected=None):
    """Foreign state dict {key: array} -> our nested params, float32.

    ignore: regexes of keys that have no place here. expected: our (abstract) params to match.
    """
    compiled = [
        (re.compile(rule.key + ("()" if rule.kind == "bare" else r"\.(?:weight|(bias))")), rule)
        for rule in rules
    ]
    skip = re.compile("|".join(f"(?:{pattern})" for pattern in ignore) or "(?!)")
    pieces, unknown = {}, []
    for key, array in state.items():
        if skip.fullmatch(key):
            continue
        hit = next(((m, rule) for regex, rule in compiled if (m := regex.fullmatch(key))), None)
        if hit is None:
            unknown.append(key)
            continue
        match, rule = hit
        leaf = "/bias" if match[match.re.groups] else WEIGHT_LEAF[rule.kind]
        path = match.expand(rule.path) + leaf
        place = rule.layer, rule.part
        pieces.setdefault(path, {})[place] = (key, _ours(array, rule, leaf), rule)
    flat = {path: _join(path, parts) for path, parts in pieces.items()}
    keys = {path: _some([key for key, *_ in parts.values()]) for path, parts in pieces.items()}
    _check(flat, keys, unknown, expected)
    return traverse_util.unflatten_dict(flat, sep="/")


def export(params, rules):
    """Our params -> {foreign key: array} by a table of literal keys; `convert` undoes it."""
    leaves = dict(tree.named_leaves(params))
    state, used = {}, set()
    for rule in rules:
        for leaf in {WEIGHT_LEAF[rule.kind], "/bias"}:
            path = rule.path + leaf
            if path not in leaves:
                continue
            key = rule.key + {"/bias": ".bias"}.get(leaf, "" if rule.kind == "bare" else ".weight")
            own = np.asarray(leaves[path])
            own = own[rule.layer] if rule.layers else own
            part = np.split(own, rule.parts, axis=-1)[rule.part]
            state[key] = np.ascontiguousarray(_theirs(part, rule, leaf))
            used.add(path)
    if left := sorted(leaves.keys() - used):
        raise errors.UsageError(f"This table has no place for {_some(left)}.")
    return state


def _ours(array, rule, leaf):
    """A foreign array in our layout."""
    array = np.asarray(array)
    array = array.astype(np.float32) if array.dtype.kind == "f" else array
    if rule.reorder is not None:
        array = rule.reorder(array)
    if leaf != "/kernel":
        return array
    if rule.kind == "conv":
        return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    return array.reshape(array.shape[:2]).T if set(array.shape[2:]) <= {1} else array


def _theirs(array, rule, leaf):
    """Our array in the foreign layout."""
    if leaf != "/kernel":
        return array
    if rule.kind == "conv":
        return array.transpose(3, 2, 0, 1)
    return array.T[:, :, None, None] if rule.kind == "1x1" else array.T


def _join(path, parts):
    *_, rule = next(iter(parts.values()))
    places = [(i, j) for i in range(rule.layers or 1) for j in range(rule.parts)]
    if sorted(parts) != places:
        raise errors.UsageError(
            f"Checkpoint has {len(parts)} of the {len(places)} parts of {path}."
        )
    arrays = [parts[place][1] for place in places]
    if rule.parts > 1:
        rows = range(0, len(arrays), rule.parts)
        arrays = [np.concatenate(arrays[i : i + rule.parts], axis=-1) for i in rows]
    return np.stack(arrays) if rule.layers else arrays[0]


def _check(flat, keys, unknown, expected):
    """One UsageError that says everything that does not fit."""
    broken = [p for p, a in flat.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]
    faults = {
        "keys that no rule knows": unknown,
        "values that are not finite": [keys[path] for path in broken],
    }
    if expected is not None:
        shapes = {path: tuple(leaf.shape) for path, leaf in tree.named_leaves(expected)}
        faults |= {
            "it lacks what this model needs": sorted(shapes.keys() - flat.keys()),
            "it has what this model lacks": [keys[p] for p in sorted(flat.keys() - shapes.keys())],
            "shapes differ": [
                f"{keys[path]} makes {path} {flat[path].shape} instead of {shapes[path]}"
                for path in sorted(shapes.keys() & flat.keys())
                if flat[path].shape != shapes[path]
            ],
        }
    if off := [f"{fault}: {_some(names)}" for fault, names in faults.items() if names]:
        raise errors.UsageError(f"The checkpoint does not fit: {'; '.join(off)}.")


def _some(names, most=5):
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
