"""Every distinct convolution of a program, timed alone: forward, and the gradients of both inputs.

XLA chooses an algorithm for each of the three; now and then it chooses a pathological one, which a
whole step only shows as being slow.
"""

import collections
import functools
import statistics

import jax
import numpy as np
from jax.extend import core

from ldm_jax.cost import flops, timing

KINDS = ("forward", "input_gradient", "kernel_gradient")
SLOW = 0.25  # of the median rate of its kind: what is below is named


def find(function, *args) -> dict:
    """{a convolution: how often it occurs}; the arguments may be shapes alone."""
    found = collections.Counter()
    _collect(jax.make_jaxpr(function)(*args).jaxpr, found)
    return dict(found)


class Convolution:
    """Shapes, dtype and parameters of one; equal where those are. `work`: operations of a pass."""

    def __init__(self, equation):
        self.shapes = tuple(v.aval.shape for v in equation.invars)
        self.dtype = equation.invars[0].aval.dtype
        self.work = flops.of_convolution(equation)
        self._bind = lambda x, kernel: equation.primitive.bind(x, kernel, **equation.params)
        self._key = (self.shapes, self.dtype, str(equation.params))

    def __eq__(self, other):
        return self._key == other._key

    def __hash__(self):
        return hash(self._key)

    def __str__(self):
        x, kernel = ("x".join(map(str, shape)) for shape in self.shapes)
        return f"{x} * {kernel} {self.dtype}"

    def clock(self, repeats: int) -> dict:
        """{kind: seconds of a pass}."""
        rng = np.random.default_rng(0)
        x, kernel = (jax.numpy.asarray(rng.normal(size=s), self.dtype) for s in self.shapes)
        out = jax.jit(self._bind)(x, kernel)
        passes = {
            "forward": lambda x, kernel, out: self._bind(x, kernel),
            "input_gradient": lambda x, kernel, out: jax.vjp(lambda x: self._bind(x, kernel), x)[1](
                out
            ),
            "kernel_gradient": lambda x, kernel, out: jax.vjp(
                lambda kernel: self._bind(x, kernel), kernel
            )[1](out),
        }
        seconds = {}
        for kind, function in passes.items():
            call = functools.partial(jax.jit(function), x, kernel, out)
            seconds[kind] = timing.repeated(call, repeats)["seconds"]
        return seconds


def clock(counted: dict, repeats: int) -> dict:
    """All passes of a training step, and each convolution with its rates, for `Benchmark`."""
    shapes = []
    for convolution, times in counted.items():
        seconds = convolution.clock(repeats)
        rates = {kind: convolution.work / spent for kind, spent in seconds.items()}
        shapes.append(
            {"shape": str(convolution), "times": times, "seconds": seconds, "rate": rates}
        )
    usual = {kind: statistics.median(s["rate"][kind] for s in shapes) for kind in KINDS}
    for shape in shapes:
        shape["slow"] = [k for k in KINDS if shape["rate"][k] < SLOW * usual[k]]
    total = sum(s["times"] * sum(s["seconds"].values()) for s in shapes)
    work = sum(3 * times * convolution.work for convolution, times in counted.items())
    return {"seconds": total, "flops": work, "flops_per_second": work / total, "shapes": shapes}


def lines(found: dict) -> list[str]:
    """The ones that take the most time, and those that are slow for what they do."""
    spent = lambda s: s["times"] * sum(s["seconds"].values())
    ordered = sorted(found["shapes"], key=spent, reverse=True)
    chosen = ordered[:5] + [s for s in ordered[5:] if s["slow"]]
    return [
        f"  {spent(s) / found['seconds']:6.1%}  {s['times']:2} x {s['shape']:48}  "
        + ", ".join(f"{1e-12 * s['rate'][kind]:.3g}" for kind in KINDS)
        + " TFLOP/s"
        + (f"  SLOW: {', '.join(s['slow'])}" if s["slow"] else "")
        for s in chosen
    ]


def _collect(jaxpr, found):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            found[Convolution(equation)] += 1
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(inner, (core.Jaxpr, core.ClosedJaxpr)):
                    _collect(getattr(inner, "jaxpr", inner), found)
