"""A run's figures against the length of its average, as a table and as a plot."""

import math

from matplotlib.figure import Figure

from ldm_jax.base import disk

PANEL = (3.6, 2.7)  # inches
COLUMNS = 3


def words(summary: dict) -> list[str]:
    """A line for every length, where there are several."""
    return [
        f"ema {length}: " + ", ".join(f"{name} {figures[name]:.5g}" for name in _names(figures))
        for length, figures in summary.get("by_ema", {}).items()
    ]


def plot(by_ema: dict, file):
    """Writes a PNG with a panel for every figure, over the lengths in ascending order.

    There are no error bars: all lengths meet the same records and noise, so that their differences
    are far surer than a figure itself.
    """
    found = sorted((float(length), figures) for length, figures in by_ema.items())
    lengths, each = zip(*found)
    names = _names(each[0])
    rows, columns = math.ceil(len(names) / COLUMNS), min(len(names), COLUMNS)
    size = PANEL[0] * columns, PANEL[1] * rows
    figure = Figure(figsize=size, layout="constrained")
    for i, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, i + 1, title=name, xlabel="length of the average")
        axes.plot(lengths, [figures[name] for figures in each], marker="o")
        axes.grid(alpha=0.3)
    disk.write_atomic(file, lambda target: figure.savefig(target, format="png"))


def _names(figures: dict) -> list[str]:
    return [name for name in figures if not name.endswith(("_std", "_low", "_high"))]
