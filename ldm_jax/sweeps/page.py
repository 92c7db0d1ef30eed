"""The report as a single HTML file, with all plots and samples inside it as base64."""

import html
import pathlib

from ldm_jax.base import disk, errors, remote
from ldm_jax.reports import intervals, markup
from ldm_jax.sweeps import conclusion, figures, results
from ldm_jax.sweeps import law as law_lib
from ldm_jax.sweeps import variants as variants_lib


def write(workdir, cells: list[dict], axes: dict) -> dict:
    """Writes index.html, results.csv and cells.json, which has all that these are made of.

    Returns the summary.

    cells: their summaries, in the order of the sweep. axes: {axis: labels}, the baseline first.
    """
    workdir = pathlib.Path(workdir)
    found = ranking(workdir, cells)
    key = found[0]
    said = conclusion.sentences(cells, key, axes) + conclusion.off_budget(cells)
    ranks, variants = conclusion.predictors(cells, key), variants_lib.of(cells, key)
    law = law_lib.summary(cells, key)
    disk.write_text(workdir / "results.csv", results.table(cells))
    disk.write_json(workdir / "cells.json", {"axes": axes, "cells": results.portable(cells)})
    disk.write_text(workdir / "index.html", page(cells, axes, found, said, ranks, law))
    return {
        "measure": key,
        "conclusion": said,
        "rank_correlation": {name: rho for name, (rho, _) in ranks.items()},
        "values": {c["cell"]: results.final(c)["measures"][key] for c in cells},
        "variants": {v.name: v.mean._asdict() | {"seeds": len(v.values)} for v in variants},
        "effects": [_summary(effect) for effect in variants_lib.effects(variants, axes, key)],
        "law": law,
    }


def ranking(workdir, cells) -> list[str]:
    """The measures that all cells have; the first one ranks them."""
    found = results.keys(cells)
    if not found:
        raise errors.UsageError(
            f"{workdir}: the cells' evaluations share none of {', '.join(results.MEASURES)}; give "
            "config.evaluate.samples the flags that measure one."
        )
    return found


def page(cells, axes, keys, said, ranks, law) -> str:
    plots = []
    for key in keys:
        plots += [figures.training(cells, key, x) for x in ("steps", "flops")]
        plots += [figures.throughput(cells, key), figures.sizes(cells, key)]
    distortions = [figures.distortion(cells, key) for key in results.FIRST_STAGE]
    title = f"Sweep over {', '.join(variants_lib.varied(axes)) or 'seeds'}"
    parts = [
        "<h2>Conclusion</h2>",
        *(f"<p>{html.escape(sentence)}</p>" for sentence in said),
        "<h2>Variants, over their seeds</h2>",
        _variants(cells, axes, keys),
        *(_effects(cells, axes, key) for key in keys),
        "<h2>Cells, at the end of training</h2>",
        _table(cells, axes, keys),
        "<h2>Quality, training and throughput</h2>",
        *map(markup.figure, filter(None, plots)),
        *(_law(cells, keys[0], law) if law else ()),
        "<h2>First stages</h2>",
        *(markup.figure(plot) for plot in distortions if plot),
        _predictors(ranks),
        "<h2>Costs</h2>",
        markup.figure(figures.costs(cells)),
        _costs(cells),
        "<h2>Samples</h2>",
        *map(_samples, cells),
    ]
    return markup.page(title, parts)


def _variants(cells, axes, keys) -> str:
    """A row for each variant: the means over its seeds."""
    columns = [variants_lib.of(cells, key) for key in keys]
    shown = variants_lib.varied(axes)
    head = ["variant", *shown, "seeds", *(results.MEASURES[key][0] for key in keys)]
    rows = [
        [own[0].name, *(own[0].labels[axis] for axis in shown), len(own[0].values)]
        + [variant.mean for variant in own]
        for own in zip(*columns)
    ]
    note = "In brackets 95 % intervals: Student's t over seeds, or of the samples if that is wider."
    return markup.table(head, rows) + f"<p>{note}</p>"


def _effects(cells, axes, key) -> str:
    """A row for each value of an axis against the axis' baseline; empty without any."""
    found = variants_lib.effects(variants_lib.of(cells, key), axes, key)
    if not found:
        return ""
    head = ["axis", "value", "against", "difference", "corrected", "so it is"]
    rows = []
    for effect in found:
        p = "-" if effect.p is None else conclusion.probability(effect.p)
        row = [effect.axis, effect.label, effect.baseline, effect.difference.value, p]
        verdict = "not shown to differ" if effect.verdict == "none" else effect.verdict
        rows.append([*row, verdict])
    return f"<h3>{html.escape(results.MEASURES[key][0])}</h3>" + markup.table(head, rows)


def _summary(effect) -> dict:
    numbers = {"difference": effect.difference.value.value, "p": effect.p}
    numbers |= {"low": effect.difference.value.low, "high": effect.difference.value.high}
    words = {name: getattr(effect, name) for name in ("axis", "label", "baseline", "verdict")}
    return words | numbers | {"seeds": effect.difference.seeds}


def _table(cells, axes, keys) -> str:
    shown = variants_lib.varied(axes)
    head = ["cell", *shown, "parameters", "steps", "batch", "training FLOPs", "samples/s"]
    head += [results.MEASURES[key][0] for key in keys]
    rows = []
    for cell in cells:
        last, steps = results.final(cell), cell["steps"]
        speed = last["images_per_second"]
        row = [cell["cell"], *(cell["labels"][axis] for axis in shown)]
        row += [f"{cell['parameters']:,}", f"{steps:,}", cell["batch_size"]]
        row += [f"{results.flops(cell, steps):.3g}", f"{speed:.3g}" if speed else "-"]
        rows.append(row + [intervals.measure(last["measures"], k, last["num"]) for k in keys])
    note = f"<p>{cells[0]['rows'][0]['num']} samples each; in brackets 95 % intervals.</p>"
    return markup.table(head, rows) + note


def _law(cells, key, law) -> list[str]:
    """The law of a measure: its figure, the winner at each budget, its check. law: its summary."""
    said = law_lib.FORMULA.format(**law)
    head = ["denoiser's FLOPs", *(f"{name} is best with" for name in law["terms"])]
    rows = [
        [f"{budget['flops']:.3g}", *(f"{p:.0%}" for p in budget["best_with"].values())]
        for budget in law["winners"]
    ]
    parts = [
        "<h2>A law</h2>",
        f"<p>{html.escape(said)}</p>",
        markup.figure(figures.law(cells, key)),
    ]
    parts.append(markup.table(head, rows))
    if law["held_out"]:
        rows = [[name, *map("{:.4g}".format, v.values())] for name, v in law["held_out"].items()]
        note = (
            "The largest budget, as the law predicts it from points that cost at most a "
            f"{law_lib.HELD_OUT}th of it. The last of these points is the rival of the prediction."
        )
        head = [results.MEASURES[key][0], *law_lib.CHECKED]
        parts += ["<h3>Held out</h3>", markup.table(head, rows), f"<p>{note}</p>"]
    return parts


def _predictors(ranks) -> str:
    if not ranks:
        return "<p>Too few first stages to correlate their measures with the final ranking.</p>"
    rows = [(results.FIRST_STAGE[name][0], f"{rho:+.2f}", n) for name, (rho, n) in ranks.items()]
    head = ["measure of the first stage", "rank correlation with the samples' quality", "stages"]
    return markup.table(head, rows)


def _costs(cells) -> str:
    head = ["cell", "first stage, s", "encoding, s", "denoiser, s", "first stage, share of FLOPs"]
    rows, seen = [], {}
    for cell in cells:
        first = cell["first_stage"] or {"flops": 0, "train_seconds": 0, "encode_seconds": 0}
        own = results.flops(cell, cell["steps"])
        times = [first["train_seconds"], first["encode_seconds"], cell["train_seconds"]]
        share = f"{first['flops'] / (first['flops'] + own):.0%}"
        rows.append([cell["cell"], *(f"{t:,.0f}" for t in times), share])
        if cell["first_stage"]:
            seen.setdefault(first["name"], []).append(first["flops"])
    saved = sum(sum(costs[1:]) for costs in seen.values())
    note = f"Sharing first stages between cells saved {saved:.3g} FLOPs of training."
    return markup.table(head, rows) + f"<p>{note}</p>"


def _samples(cell) -> str:
    if path := results.final(cell).get("samples_png"):
        file = pathlib.Path(remote.local(path, whole=False))
        remote.fetch(file.parent, file.name)
        if file.is_file():
            return markup.image(file.read_bytes(), cell["cell"])
    return f"<p>{html.escape(cell['cell'])}: its samples are no longer there.</p>"
