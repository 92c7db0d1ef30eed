"""Plots, as matplotlib Figures without a window."""

from matplotlib.figure import Figure

SIZE = (6.4, 4.2)  # inches


def axes(title: str, x: str, y: str, log: bool = True, size=SIZE):
    """(figure, axes); log: of x."""
    figure = Figure(figsize=size, layout="constrained")
    scale = "log" if log else "linear"
    found = figure.add_subplot(title=title, xlabel=x, ylabel=y, xscale=scale)
    found.grid(alpha=0.3)
    return figure, found


def points(axes, x, values, **style):
    """Draws measured values, a list of intervals.Value, with error bars if all have intervals."""
    errors = None
    if all(v.low is not None for v in values):
        # The interval of a share is asymmetric, and by rounding it may not even contain the share.
        both = [(max(v.value - v.low, 0), max(v.high - v.value, 0)) for v in values]
        errors = [*zip(*both)]
    axes.errorbar(x, [v.value for v in values], errors, marker="o", capsize=2, **style)
