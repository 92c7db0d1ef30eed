"""Floating-point operations of a function, counted from its jaxpr.

As is usual for MFU, only matrix products and convolutions count, with two operations for a
multiplication and its addition. The body of a loop counts as often as it runs. The padding of a
convolution counts like other pixels; zeros that dilation inserts between pixels do not count.
"""

import math

import jax
from jax.extend import core


def count(function, *args) -> float:
    """Operations of `function(*args)`; the arguments may be shapes alone."""
    return of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def of_jaxpr(jaxpr) -> float:
    """Operations of a function that is traced already."""
    return float(_count(jaxpr))


def repeated(function, *args) -> float:
    """Those operations of `count` that XLA's cost analysis leaves out.

    It counts what a loop compiles to once: the body, as often as it is unrolled.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return float(_count(jaxpr) - _count(jaxpr, once=True))


def inner(equation) -> list[core.Jaxpr]:
    """The jaxprs inside one equation: bodies of loops, branches, functions that it calls."""
    found, kinds = jax.tree.leaves(equation.params), (core.Jaxpr, core.ClosedJaxpr)
    return [getattr(value, "jaxpr", value) for value in found if isinstance(value, kinds)]


def turns(equation, once: bool = False) -> int:
    """How often the jaxprs inside an equation run; once: as often as they are compiled."""
    if equation.primitive.name == "shard_map":
        return equation.params["mesh"].size  # what is inside is the part of one device
    if equation.primitive.name != "scan":
        return 1
    length, unroll = equation.params["length"], equation.params["unroll"]
    return unroll + length % unroll if once and unroll < length else length


def of_convolution(equation) -> float:
    """Operations of one equation `conv_general_dilated`."""
    params, [out] = equation.params, equation.outvars
    kernel, where = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
    taps = math.prod(kernel[i] for i in where[2:])
    inputs = kernel[where[1]]  # of one group
    # With dilation d, only every d-th tap of the kernel meets a pixel that is not zero.
    return 2 * math.prod(out.aval.shape) * taps * inputs / math.prod(params["lhs_dilation"])


def _count(jaxpr, once: bool = False) -> float:
    """once: loops count as they are compiled, see `repeated`."""
    total = 0
    for equation in jaxpr.eqns:
        name, params, within = equation.primitive.name, equation.params, inner(equation)
        if name == "conv_general_dilated":
            total += of_convolution(equation)
        elif name == "dot_general":
            (contracting, _), _ = params["dimension_numbers"]
            sides = equation.invars[0].aval.shape
            outputs = math.prod(equation.outvars[0].aval.shape)
            total += 2 * outputs * math.prod(sides[i] for i in contracting)
        elif name == "pallas_call" and params.get("cost_estimate"):
            total += params["cost_estimate"].flops
        elif name == "cond":  # one branch runs: the costliest is assumed
            total += max(_count(branch, once) for branch in within)
        else:
            total += turns(equation, once) * sum(_count(body, once) for body in within)
    return total
