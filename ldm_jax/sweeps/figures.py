"""The plots of a report: each function makes a matplotlib Figure of the cells' summaries."""

import collections

import numpy as np
from matplotlib.figure import Figure

from ldm_jax.reports import intervals, plots
from ldm_jax.sweeps import inference, results
from ldm_jax.sweeps import law as law_lib
from ldm_jax.sweeps.cells import variant_name


def _line(axes, cells, cell, x, rows, key):
    """Draws one cell's rows over x, with error bars; each variant has a colour and one label."""
    values = [intervals.measure(row["measures"], key, row["num"]) for row in rows]
    names, label = [*dict.fromkeys(map(results.variant, cells))], results.variant(cell)
    colour = f"C{names.index(label) % 10}"
    label = None if label in axes.get_legend_handles_labels()[1] else label
    plots.points(axes, x, values, color=colour, label=label)
    axes.legend(fontsize="small")


def training(cells, key: str, x: str) -> Figure:
    """Fig. 6: quality during training. x: "steps" or "flops"."""
    words = {"steps": "training steps", "flops": "training FLOPs of the denoiser"}[x]
    figure, axes = plots.axes(f"Quality against {words}", words, results.MEASURES[key][0])
    for cell in cells:
        rows = [row for row in cell["rows"] if row["sampling_steps"] == cell["curve"]]
        each = {"steps": 1, "flops": cell["flops_per_step"]}[x]
        _line(axes, cells, cell, [each * row["step"] for row in rows], rows, key)
    return figure


def law(cells, key: str) -> Figure:
    """Quality against the training FLOPs of both stages, with the fitted law to 4 x as far."""
    label = results.MEASURES[key][0]
    title = "Quality against the training FLOPs of both stages"
    figure, axes = plots.axes(title, "training FLOPs", label)
    measured = law_lib.points(cells, key)
    fitted = law_lib.fit(measured)
    first = {results.variant(c): (c["first_stage"] or {}).get("flops", 0.0) for c in cells}
    shown = lambda loss: 1 - loss if results.MEASURES[key][1] else loss
    for i, name in enumerate(first):
        own, colour = [p for p in measured if p.variant == name], f"C{i % 10}"
        at = np.array([p.flops for p in own])
        axes.scatter(at + first[name], [shown(p.loss) for p in own], s=14, color=colour, label=name)
        for style, ends in (("-", (at.min(), at.max())), (":", (at.max(), 4 * at.max()))):
            reach = np.geomspace(*ends)
            curve = [shown(fitted.at(name, x)) for x in reach]
            axes.plot(reach + first[name], curve, style, color=colour)
    axes.legend(fontsize="small")
    return figure


def throughput(cells, key: str) -> Figure:
    """Fig. 7: quality against the speed of sampling, with a point for each step count."""
    title = "Quality against sampling throughput, at the end of training"
    figure, axes = plots.axes(title, "images per second", results.MEASURES[key][0])
    for cell in cells:
        rows = sorted(cell["rows"], key=lambda row: row["sampling_steps"])
        last = [r for r in rows if r["step"] == cell["steps"] and r["images_per_second"]]
        if last:
            _line(axes, cells, cell, [row["images_per_second"] for row in last], last, key)
        for row in last:
            at = row["images_per_second"], row["measures"][key]
            axes.annotate(f" {row['sampling_steps']}", at, fontsize="x-small")
    return figure


def distortion(cells, key: str) -> Figure | None:
    """A measure of the first stages against the size of their latents; None if none has it."""
    having = [cell for cell in cells if key in results.first_stage(cell)]
    if not having:
        return None
    label, _ = results.FIRST_STAGE[key]
    figure, axes = plots.axes(f"First stages: {label}", "numbers in the latents of an image", label)
    for cell in {cell["first_stage"]["name"]: cell for cell in having}.values():
        numbers = results.numbers(cell)
        at = numbers, results.first_stage(cell)[key]
        axes.scatter(*at, color="C0")
        name = cell["first_stage"]["name"].rpartition("-")[0]
        axes.annotate(f" {name}", at, fontsize="small")
    return figure


def sizes(cells, key: str) -> Figure | None:
    """Quality at the end of training against the size of the latents, a line for each f.

    f and the size change together where each f has one number of channels. Here what stands above
    one another is of equal size. None where nothing has latents of several sizes.
    """
    lines = collections.defaultdict(lambda: collections.defaultdict(list))
    for cell in cells:
        numbers = results.numbers(cell)
        others = {axis: label for axis, label in cell["labels"].items() if axis != "channels"}
        row = results.final(cell)
        value = intervals.measure(row["measures"], key, row["num"])
        lines[variant_name(others)][numbers].append(value)
    if all(len(line) == 1 for line in lines.values()):
        return None
    title, words = "Quality against the size of the latents", "numbers in the latents of an image"
    figure, axes = plots.axes(title, words, results.MEASURES[key][0])
    for name, line in lines.items():
        at = sorted(line)
        plots.points(axes, at, [inference.mean(line[numbers]) for numbers in at], label=name)
    axes.legend(fontsize="small")
    return figure


def costs(cells) -> Figure:
    """Training FLOPs of both stages, a bar for each cell."""
    figure, axes = plots.axes("What each cell cost", "training FLOPs", "", log=False)
    names = [cell["cell"] for cell in cells]
    first = [cell["first_stage"]["flops"] if cell["first_stage"] else 0.0 for cell in cells]
    second = [results.flops(cell, cell["steps"]) for cell in cells]
    axes.barh(names, first, label="first stage (once, whoever shares it)")
    axes.barh(names, second, left=first, label="denoiser")
    axes.invert_yaxis()
    axes.legend(fontsize="small")
    return figure
