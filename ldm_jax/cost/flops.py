"""Floating-point operations of a function, counted from its jaxpr: the model's own work.

Products and convolutions count, two operations a multiplication and an addition; everything else
does not, as is the custom for MFU. Loops count as often as they run. A convolution's padding counts
like its other pixels; zeros that dilation puts between pixels do not.
"""

import math
from collections import Counter

import jax
from jax.extend import core


def count(function, *args) -> float:
    """Operations of `function(*args)`; the arguments may be shapes alone."""
    return float(sum(by_kind(function, *args).values()))


def by_kind(function, *args) -> Counter:
    """{"convolution": ..., "attention": ..., "dense": ...}: products of two activations are
    attention's, those with a matrix are dense."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr) -> Counter:
    total = Counter()
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            total["convolution"] += of_convolution(equation)
        elif name == "dot_general":
            (_, _), (batch, _) = params["dimension_numbers"]
            total["attention" if batch else "dense"] += _product(equation)
        elif name == "cond":
            # One branch runs; the dearest is what has to be reckoned with.
            total += max(map(_inner, params["branches"]), key=lambda c: sum(c.values()))
        else:
            times = params["length"] if name == "scan" else 1
            for value in params.values():
                for inner in value if isinstance(value, (tuple, list)) else (value,):
                    if isinstance(inner, (core.Jaxpr, core.ClosedJaxpr)):
                        found = _inner(inner)
                        total += Counter({kind: times * n for kind, n in found.items()})
    return total


def _inner(jaxpr) -> Counter:
    return _count(jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr)


def _product(equation) -> int:
    a = equation.invars[0].aval
    (contracting, _), _ = equation.params["dimension_numbers"]
    [out] = equation.outvars
    return 2 * math.prod(out.aval.shape) * math.prod(a.shape[i] for i in contracting)


def of_convolution(equation) -> float:
    """Operations of one equation `conv_general_dilated`."""
    params, [out] = equation.params, equation.outvars
    kernel, where = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
    taps = math.prod(kernel[i] for i in where[2:])
    inputs = kernel[where[1]]  # of one group
    # With zeros between the pixels only every d-th tap meets one that is not zero.
    return 2 * math.prod(out.aval.shape) * taps * inputs / math.prod(params["lhs_dilation"])
