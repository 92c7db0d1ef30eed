"""Plots of figures over the steps of training, of one run or of several."""

import math

from ldm_jax.reports import plots

SIZE = (4.4, 2.9)  # inches: two stand side by side
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
    return [_plot(name, histories, [name], name if name in held_out else "") for name in own]


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


def _plot(title, histories, names, held_out="", source="train"):
    """names: of lines, from `source`; held_out: the figure of held-out records drawn as points."""
    figure, axes = plots.axes(title, "steps", "", log=False, size=SIZE)
    several, drawn = len(histories) > 1, []
    for number, history in enumerate(histories):
        colour = {"color": f"C{number % 10}"} if len(names) < 2 else {}
        for name in names:
            steps, values = getattr(history, source).get(name, ([], []))
            label = history.name if several else name if len(names) > 1 else "training"
            axes.plot(steps, [v.value for v in values], label=label, **colour)
            drawn += values
        if held_out in history.held_out:
            steps, values = history.held_out[held_out]
            label = "held out" if not several else None if names else history.name
            plots.points(axes, steps, values, ls="", label=label, **colour)
            drawn += values
    finite = [v.value for v in drawn if math.isfinite(v.value)]
    if finite and min(finite) > 0 and max(finite) > WIDE * min(finite):
        axes.set_yscale("log")
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(fontsize="x-small")
    return figure


def _names(histories, source) -> list[str]:
    return [*dict.fromkeys(name for history in histories for name in getattr(history, source))]
