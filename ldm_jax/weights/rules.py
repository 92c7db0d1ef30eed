"""Rules from foreign checkpoint keys to our parameter paths, applied with strict accounting.

A table is a list of `Rule`s, one per layer, weight and bias together. Every foreign key must match
a rule or an ignored pattern, and every parameter of ours must be filled, or conversion stops and
says what is off.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from ldm_jax.base import errors


class Rule(NamedTuple):
    """One layer: the regex of its foreign key up to `.weight` or `.bias`, and our path.

    Named groups of `key` fill the template `path`.

    kind: "conv" (OIHW -> HWIO), "dense" ((out, in, 1...) -> (in, out)), "norm", "table" (an
    embedding), or "array", where the path is the leaf itself.
    part, parts: this layer is one of several joined along the output, like q, k and v.
    reorder: applied to the foreign array, weight and bias alike, before anything else.
    """

    key: str
    path: str
    kind: str
    part: int = 0
    parts: int = 1
    reorder: Callable | None = None


WEIGHT_LEAF = {
    "conv": "/kernel",
    "dense": "/kernel",
    "norm": "/scale",
    "table": "/embedding",
    "array": "",
}


def within(places, layers):
    """The rules of layers that stand at many places, each place a (key, path) to put in front."""
    return [
        rule._replace(key=key + rule.key, path=path + rule.path)
        for key, path in places
        for rule in layers
    ]


def convert(state, rules, ignore=(), expected=None):
    """Foreign state dict {key: array} -> our nested params.

    ignore: regexes of keys that have no place here. expected: our (abstract) params to match.
    """
    compiled = [(re.compile(rf"{rule.key}\.(?P<leaf>weight|bias)"), rule) for rule in rules]
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
        leaf = "/bias" if match["leaf"] == "bias" else WEIGHT_LEAF[rule.kind]
        path = match.expand(rule.path) + leaf
        pieces.setdefault(path, {})[rule.part] = (_ours(np.asarray(array), rule, leaf), rule.parts)
    if unknown:
        raise errors.UsageError(f"Checkpoint keys that no rule knows: {_some(unknown)}.")
    flat = {path: _join(path, parts) for path, parts in pieces.items()}
    if expected is not None:
        _check(flat, expected)
    return _nest(flat)


def _ours(array, rule, leaf):
    """A foreign array in our layout."""
    if rule.reorder is not None:
        array = rule.reorder(array)
    if leaf == "/kernel" and rule.kind == "conv":
        return array.transpose(2, 3, 1, 0)
    if leaf == "/kernel":
        return array.reshape(array.shape[:2]).T
    return array


def _join(path, parts):
    number = next(iter(parts.values()))[1]
    if sorted(parts) != list(range(number)):
        raise errors.UsageError(f"Checkpoint has {len(parts)} of the {number} parts of {path}.")
    arrays = [parts[i][0] for i in range(number)]
    return arrays[0] if number == 1 else np.concatenate(arrays, axis=-1)


def _check(flat, expected):
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    shapes = {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}
    if missing := sorted(shapes.keys() - flat.keys()):
        raise errors.UsageError(f"Checkpoint lacks what this model needs: {_some(missing)}.")
    if extra := sorted(flat.keys() - shapes.keys()):
        raise errors.UsageError(f"Checkpoint has what this model lacks: {_some(extra)}.")
    wrong = [
        f"{path}: {flat[path].shape} instead of {shapes[path]}"
        for path in shapes
        if flat[path].shape != shapes[path]
    ]
    if wrong:
        raise errors.UsageError(f"Checkpoint shapes differ from the model's: {_some(wrong)}.")


def _nest(flat):
    tree = {}
    for path, array in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return tree


def _some(names, most=5):
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
