"""Quality of samplers against network calls and against speed: the tables of docs/samplers.md.

    python docs/sampler_table.py --run=RUN --weights=MOBILENET --out=runs/samplers [--num=512]

Runs `sample` and `evaluate` for every sampler, grid and number of calls, and writes table.md and
plot.png. The same command again skips what is finished.
"""

import itertools
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from ldm_jax import cli
from ldm_jax.base import record as record_lib
from ldm_jax.diffusion.process import make_process
from ldm_jax.stages.sampling import Sampling

FLAGS = dict(
    run=cli.Text("Folder of a trained second stage."),
    out=cli.Text("Folder to write to."),
    weights=cli.Text("File of the weights for fd_mobilenet.", ""),
    num=cli.Integer("Images drawn for each entry of the table.", 512, least=1),
    batch_size=cli.Integer("Images drawn at a time.", 64, least=1),
    samplers=cli.Listed("Samplers: the rows.", ("ddim", "plms", "heun", "dpmpp_2m", "unipc")),
    calls=cli.Listed("Network calls at most: the columns.", (5, 10, 20), each=int),
    spacings=cli.Listed("Time grids.", ("exact", "karras")),
)


def main(args, overrides):
    cli.refuse_overrides(overrides)
    cli.require(args, "run", "out")
    out, rows = pathlib.Path(args.out), []
    process = make_process(**record_lib.read(args.run).process)
    for name, spacing, most in itertools.product(args.samplers, args.spacings, args.calls):
        calls = lambda steps, n=name, s=spacing: len(Sampling(n, steps, spacing=s).method(process))
        steps = max(steps for steps in range(1, most + 1) if calls(steps) <= most)
        how = [f"--sampler={name}", f"--spacing={spacing}", f"--steps={steps}"]
        rows.append({"sampler": name, "spacing": spacing, "calls": most})
        rows[-1] |= measure(args, out / f"{name}_{spacing}_{most}", how)
    (out / "table.md").write_text(table(rows))
    plot(out / "plot.png", rows)
    print(table(rows))


def measure(args, folder, how) -> dict:
    """The measures of one entry of the table, for which it draws and evaluates samples once."""
    done = folder / "evaluation" / "summary.json"
    if not done.exists():
        how += [f"--num={args.num}", f"--batch_size={args.batch_size}"]
        cli.call("sample", f"--run={args.run}", f"--out={folder}", *how)
        features = [f"--weights={args.weights}", "--metrics=fd", "--bootstrap=0"]
        cli.call("evaluate", f"--samples={folder}", *(features if args.weights else []))
    drawn, quality = (json.loads(file.read_text()) for file in (folder / "summary.json", done))
    known = {k: quality[k] for k in ("fd_mobilenet", "class_accuracy") if k in quality}
    return known | {"images_per_second": drawn["images_per_second"]}


def table(rows) -> str:
    """Markdown tables with a row for each sampler and grid, a column for each number of calls."""
    calls = sorted({row["calls"] for row in rows})
    keys = [k for k in ("fd_mobilenet", "class_accuracy", "images_per_second") if k in rows[0]]
    lines = []
    for key in keys:
        lines += [f"`{key}`:", "", "| sampler, grid |" + "".join(f" {c} calls |" for c in calls)]
        lines += ["|---|" + "---|" * len(calls)]
        for (name, spacing), group in by_sampler(rows):
            cells = "".join(f" {row[key]:.3g} |" for row in group)
            lines.append(f"| {name}, {spacing} |{cells}")
        lines.append("")
    return "\n".join(lines)


def by_sampler(rows):
    """((sampler, grid), its rows) for each of them."""
    return itertools.groupby(rows, key=lambda row: (row["sampler"], row["spacing"]))


def plot(path, rows):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    key = "fd_mobilenet" if "fd_mobilenet" in rows[0] else "class_accuracy"
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for (name, spacing), group in by_sampler(rows):
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
    cli.start(__doc__, FLAGS, main)
