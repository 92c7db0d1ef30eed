"""Quality against calls and seconds, for samplers and step counts: the table of docs/samplers.md.

    python launch/sampler_table.py --run=RUN --weights=MOBILENET --out=runs/samplers [--num=512]

Draws and evaluates every cell as the commands do, leaves table.md and plot.png, and goes on from
what is there.
"""

import itertools
import json
import pathlib
import sys

from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from ldm_jax import cli, evaluate, sample
from ldm_jax.base import record as record_lib
from ldm_jax.diffusion.process import make_process
from ldm_jax.stages.sampling import Sampling

RUN = flags.DEFINE_string("run", None, "a second stage", required=True)
OUT = flags.DEFINE_string("out", None, "folder", required=True)
WEIGHTS = flags.DEFINE_string("weights", "", "for fd_mobilenet")
NUM = flags.DEFINE_integer("num", 512, "images of a cell")
BATCH = flags.DEFINE_integer("batch_size", 64, "images at a time")
SAMPLERS = flags.DEFINE_list("samplers", ["ddim", "plms", "heun", "dpmpp_2m", "unipc"], "rows")
CALLS = flags.DEFINE_list("calls", ["5", "10", "20"], "columns: network calls, at most")
SPACINGS = flags.DEFINE_list("spacings", ["exact", "karras"], "time grids")


def main(_):
    out, rows = pathlib.Path(OUT.value), []
    process = make_process(**record_lib.read(RUN.value).process)
    for name, spacing, most in itertools.product(SAMPLERS.value, SPACINGS.value, CALLS.value):
        steps = max(
            s
            for s in range(1, int(most) + 1)
            if Sampling(name, s, spacing=spacing).calls(process) <= int(most)
        )
        rows.append({"sampler": name, "spacing": spacing, "calls": int(most)})
        rows[-1] |= measure(out / f"{name}_{spacing}_{most}", name, spacing, steps)
    (out / "table.md").write_text(table(rows))
    plot(out / "plot.png", rows)
    print(table(rows))


def measure(folder, name, spacing, steps) -> dict:
    """What the cell's two summaries say."""
    done = folder / "evaluation" / "summary.json"
    if not done.exists():
        how = [f"--sampler={name}", f"--spacing={spacing}", f"--steps={steps}"]
        how += [f"--num={NUM.value}", f"--batch_size={BATCH.value}"]
        call(sample, f"--run={RUN.value}", f"--out={folder}", *how)
        features = (
            [f"--weights={WEIGHTS.value}", "--metrics=fd", "--bootstrap=0"] if WEIGHTS.value else []
        )
        call(evaluate, f"--samples={folder}", *features)
    drawn, quality = (json.loads(file.read_text()) for file in (folder / "summary.json", done))
    known = {k: quality[k] for k in ("fd_mobilenet", "class_accuracy") if k in quality}
    return known | {"images_per_second": drawn["images_per_second"]}


def call(command, *argv):
    if code := cli.run(command.__doc__, command.define, command.main, list(argv)):
        sys.exit(code)


def table(rows) -> str:
    """Markdown: a row a sampler and grid, a column per number of calls."""
    calls = sorted({row["calls"] for row in rows})
    keys = [k for k in ("fd_mobilenet", "class_accuracy", "images_per_second") if k in rows[0]]
    lines = []
    for key in keys:
        lines += [f"`{key}`:", "", "| sampler, grid |" + "".join(f" {c} calls |" for c in calls)]
        lines += ["|---|" + "---|" * len(calls)]
        for (name, spacing), group in itertools.groupby(
            rows, key=lambda row: (row["sampler"], row["spacing"])
        ):
            cells = "".join(f" {row[key]:.3g} |" for row in group)
            lines.append(f"| {name}, {spacing} |{cells}")
        lines.append("")
    return "\n".join(lines)


def plot(path, rows):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    key = "fd_mobilenet" if "fd_mobilenet" in rows[0] else "class_accuracy"
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for (name, spacing), group in itertools.groupby(
        rows, key=lambda row: (row["sampler"], row["spacing"])
    ):
        group = list(group)
        style = dict(label=f"{name}, {spacing}", marker="o", ls="-" if spacing == "exact" else "--")
        quality = [row[key] for row in group]
        (line,) = left.plot([row["calls"] for row in group], quality, **style)
        rates = [row["images_per_second"] for row in group]
        right.plot(rates, quality, color=line.get_color(), marker="o", ls=style["ls"])
    left.set(xlabel="network calls an image", ylabel=key, xscale="log")
    right.set(xlabel="images per second", xscale="log")
    left.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    app.run(main)
