"""The report as a single HTML file, with all plots and samples inside it as base64."""

import base64
import html
import io
import pathlib

from ldm_jax.base import disk, errors
from ldm_jax.sweeps import conclusion, figures, results

STYLE = """body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse}
td,th{padding:.2em .7em;border-bottom:1px solid #ccc;text-align:right}
td:first-child,th:first-child{text-align:left}img{max-width:100%}
figure{display:inline-block;margin:.5em;vertical-align:top;max-width:34em}"""


def write(workdir, cells: list[dict]) -> dict:
    """Writes index.html and results.csv; returns the summary. cells: their summaries, by f."""
    workdir = pathlib.Path(workdir)
    found = results.keys(cells)
    if not found:
        raise errors.UsageError(
            f"{workdir}: the cells' evaluations share none of {', '.join(results.MEASURES)}; give "
            "config.evaluate.samples the flags that measure one."
        )
    key = found[0]
    said = conclusion.sentences(conclusion.entries(cells, key), key, cells[0]["budget"])
    said += conclusion.off_budget(cells)
    ranks = conclusion.predictors(cells, key)
    disk.write_text(workdir / "results.csv", results.table(cells))
    disk.write_text(workdir / "index.html", page(cells, found, said, ranks))
    return {
        "measure": key,
        "conclusion": said,
        "rank_correlation": {name: rho for name, (rho, _) in ranks.items()},
        "values": {c["cell"]: results.final(c)["measures"][key] for c in cells},
    }


def page(cells, keys, said, ranks) -> str:
    plots = []
    for key in keys:
        plots += [figures.training(cells, key, x) for x in ("steps", "flops")]
        plots.append(figures.throughput(cells, key))
    distortions = [figures.distortion(cells, key) for key in results.FIRST_STAGE]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>Ablation over f</title><style>{STYLE}</style></head><body>",
        "<h1>Ablation over the downsampling factor f</h1>",
        "<h2>Conclusion</h2>",
        *(f"<p>{html.escape(sentence)}</p>" for sentence in said),
        "<h2>At the end of training</h2>",
        _table(cells, keys),
        "<h2>Quality, training and throughput</h2>",
        *map(_figure, plots),
        "<h2>First stages</h2>",
        *(_figure(plot) for plot in distortions if plot),
        _predictors(ranks),
        "<h2>Costs</h2>",
        _figure(figures.costs(cells)),
        _costs(cells),
        "<h2>Samples</h2>",
        *map(_samples, cells),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _table(cells, keys) -> str:
    head = ["cell", "parameters", "steps", "batch", "training FLOPs", "samples/s"]
    head += [results.MEASURES[key][0] for key in keys]
    rows = []
    for cell in cells:
        last, steps = results.final(cell), cell["steps"]
        speed = last["images_per_second"]
        row = [cell["cell"], f"{cell['parameters']:,}", f"{steps:,}", cell["batch_size"]]
        row += [f"{results.flops(cell, steps):.3g}", f"{speed:.3g}" if speed else "-"]
        rows.append(row + [results.measure(last["measures"], k, last["num"]) for k in keys])
    note = f"<p>{cells[0]['rows'][0]['num']} samples each; in brackets 95 % intervals.</p>"
    return _html_table(head, rows) + note


def _predictors(ranks) -> str:
    if not ranks:
        return "<p>Too few first stages to correlate their measures with the final ranking.</p>"
    rows = [(results.FIRST_STAGE[name][0], f"{rho:+.2f}", n) for name, (rho, n) in ranks.items()]
    head = ["measure of the first stage", "rank correlation with the samples' quality", "stages"]
    return _html_table(head, rows)


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
    return _html_table(head, rows) + f"<p>{note}</p>"


def _samples(cell) -> str:
    file = pathlib.Path(results.final(cell)["samples_png"])
    if not file.is_file():
        return f"<p>{html.escape(cell['cell'])}: its samples are no longer there.</p>"
    return _image(file.read_bytes(), cell["cell"])


def _figure(figure) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return _image(out.getvalue())


def _image(png: bytes, caption: str = "") -> str:
    data, words = base64.b64encode(png).decode(), html.escape(caption)
    below = f"<figcaption>{words}</figcaption>" if caption else ""
    return f'<figure><img alt="{words}" src="data:image/png;base64,{data}">{below}</figure>'


def _html_table(head, rows) -> str:
    cells = lambda tag, row: "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in row)
    lines = [cells("th", head), *(cells("td", row) for row in rows)]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
