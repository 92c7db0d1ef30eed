"""Times every distinct convolution of a program alone: forward, and the gradients of both inputs.

XLA chooses an algorithm for each of the three. Now and then it chooses a very slow one, which the
time of a whole training step does not show.
"""

import collections
import dataclasses
import functools
import statistics
from collections.abc import Callable

import jax
import numpy as np

from ldm_jax.cost import flops, timing

KINDS = ("forward", "input_gradient", "kernel_gradient")
SLOW = 0.25  # a pass is called slow below this share of the median rate of its kind


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One convolution; two are equal if their shapes, dtypes and parameters are.

    bind: (x, kernel) -> output; work: floating-point operations of one pass.
    """

    shapes: tuple
    dtype: np.dtype
    parameters: str
    bind: Callable = dataclasses.field(compare=False)
    work: float = dataclasses.field(compare=False)

    def __str__(self):
        x, kernel = ("x".join(map(str, shape)) for shape in self.shapes)
        return f"{x} * {kernel} {self.dtype}"

    def clock(self, repeats: int) -> dict:
        """{kind of KINDS: seconds of one pass}."""
        rng = np.random.default_rng(0)
        x, kernel = (jax.numpy.asarray(rng.normal(size=s), self.dtype) for s in self.shapes)
        given = x, kernel, jax.jit(self.bind)(x, kernel)
        gradient = lambda i, x, kernel, out: jax.vjp(self.bind, x, kernel)[1](out)[i]
        passes = [lambda x, kernel, out: self.bind(x, kernel)]
        passes += [functools.partial(gradient, i) for i in (0, 1)]
        calls = [functools.partial(jax.jit(function), *given) for function in passes]
        return {k: timing.repeated(call, repeats)["seconds"] for k, call in zip(KINDS, calls)}


def find(function, *args) -> dict[Convolution, int]:
    """{convolution: how often it occurs}; the arguments may be shapes alone."""
    return collections.Counter(_all(jax.make_jaxpr(function)(*args).jaxpr))


def _all(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            x, kernel = (variable.aval for variable in equation.invars)
            bind = functools.partial(equation.primitive.bind, **equation.params)
            work, parameters = flops.of_convolution(equation), str(equation.params)
            yield Convolution((x.shape, kernel.shape), x.dtype, parameters, bind, work)
        for within in flops.inner(equation):
            yield from _all(within)


def clock(counted: dict[Convolution, int], repeats: int) -> dict:
    """The seconds of all convolutions in a training step, and the rates of each."""
    shapes = []
    for one, times in counted.items():
        seconds = one.clock(repeats)
        rate = {kind: one.work / spent for kind, spent in seconds.items()}
        shapes.append({"shape": str(one), "times": times, "seconds": seconds, "rate": rate})
    usual = {kind: statistics.median(s["rate"][kind] for s in shapes) for kind in KINDS}
    for shape in shapes:
        shape["slow"] = [k for k in KINDS if shape["rate"][k] < SLOW * usual[k]]
    total = sum(map(_spent, shapes))
    work = sum(3 * times * one.work for one, times in counted.items())
    return {"seconds": total, "flops": work, "flops_per_second": work / total, "shapes": shapes}


def lines(found: dict) -> list[str]:
    """Lines about the five convolutions that take the most time, and about all slow ones."""
    ordered = sorted(found["shapes"], key=_spent, reverse=True)
    return [
        f"  {_spent(s) / found['seconds']:6.1%}  {s['times']:2} x {s['shape']:48}  "
        + ", ".join(f"{1e-12 * s['rate'][kind]:.3g}" for kind in KINDS)
        + " TFLOP/s"
        + (f"  SLOW: {', '.join(s['slow'])}" if s["slow"] else "")
        for s in ordered[:5] + [s for s in ordered[5:] if s["slow"]]
    ]


def _spent(shape: dict) -> float:
    return shape["times"] * sum(shape["seconds"].values())
