"""Plots of figures over the steps of training, of one run or of several."""

import math

from ldm_jax.reports import plots

SIZE = (4.8, 3.2)  # inches
WIDE = 30.0  # the ratio from which on positive values are drawn on a logarithmic scale
RATE = "/lr"


def rates(histories) -> list:
    """One plot of all learning rates, where there are some."""
    named = [name for name in _names(histories, "train") if name.endswith(RATE)]
    return [_plot("learning rates", histories, named)] if named else []


def losses(histories) -> list:
    """A plot for each figure of training, with those of held-out records as points."""
    held_out = _names(histories, "held_out")
    own = [name for name in _names(histories, "train") if not name.endswith(RATE)]
    return [_plot(name, histories, [name], name in held_out) for name in own]


def evaluations(histories) -> list:
    """A plot for each figure that held-out records alone have, more than once."""
    train = _names(histories, "train")
    own = [name for name in _names(histories, "held_out") if name not in train]
    often = lambda name: any(len(h.held_out.get(name, ((),))[0]) > 1 for h in histories)
    return [_plot(name, histories, [], name) for name in own if often(name)]


def speed(histories) -> list:
    """A plot of the images per second."""
    name = "images_per_second"
    return [_plot(name, histories, [name], source="timing")] if _names(histories, "timing") else []


def _plot(title, histories, names, held_out=False, source="train"):
    """names: of lines, from `source`. held_out: whether, or under which name, there are points."""
    figure, axes = plots.axes(title, "steps", "", log=False, size=SIZE)
    drawn = []
    for number, history in enumerate(histories):
        label = history.name if len(histories) > 1 else None
        for name in names:
            steps, values = getattr(history, source).get(name, ([], []))
            said = label or (name if len(names) > 1 else "training" if held_out else None)
            colour = {"color": f"C{number % 10}"} if len(names) == 1 else {}
            axes.plot(steps, [v.value for v in values], label=said, **colour)
            drawn += [v.value for v in values]
        name = held_out if isinstance(held_out, str) else title
        if held_out and name in history.held_out:
            steps, values = history.held_out[name]
            said = (None if names else label) if label else "held out"
            plots.points(axes, steps, values, color=f"C{number % 10}", ls="", label=said)
            drawn += [v.value for v in values]
    finite = [value for value in drawn if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) > WIDE * min(finite):
        axes.set_yscale("log")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="x-small")
    return figure


def _names(histories, source) -> list[str]:
    return [*dict.fromkeys(name for history in histories for name in getattr(history, source))]
