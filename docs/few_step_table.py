"""Students beside their teacher at equal numbers of network calls: the tables of docs/few_steps.md.

    python docs/few_step_table.py --teacher=RUN --students=RUN,RUN --out=runs/few_steps \\
        [--plain=RUN] [--weights=MOBILENET] [--num=1024]

Every picture i of every cell has the same noise and the same held-out record's condition. The
teacher is drawn by every sampler and time grid, with guidance and without; its row shows the best
of them in each column, so that a student is held against the best that can be done without it.
--plain is a run with the teacher's settings, the teacher trained on for as long as a student.
Scores of scenes are shares of pictures, with the half-width of their 95 % interval; `p` is the
paired test (McNemar's, exact) against the teacher at its best at the most calls. The same command
again skips what is finished.
"""

import itertools
import json
import pathlib
import sys

import numpy as np
from scipy import stats

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from ldm_jax import cli
from ldm_jax.base import record as record_lib

FIGURES = ("fd_mobilenet", "recall_mobilenet", "coverage_mobilenet")
FLAGS = dict(
    teacher=cli.Text("Folder of the teacher's run."),
    students=cli.Listed("Folders of students' runs."),
    plain=cli.Text("Folder of a run that was trained on plainly from the teacher.", ""),
    out=cli.Text("Folder to write to."),
    weights=cli.Text("File of the weights for fd_mobilenet.", ""),
    reference_records=cli.Integer("Training pictures that distances are measured to.", 5000),
    num=cli.Integer("Pictures of each cell.", 1024, least=2),
    batch_size=cli.Integer("Pictures drawn at a time.", 64, least=1),
    samplers=cli.Listed("Samplers of the teacher.", ("ddim", "dpmpp_2m", "unipc")),
    spacings=cli.Listed("Its time grids.", ("exact", "karras")),
    guidance=cli.Number("Its guidance; the config's by default.", None, least=0),
    calls=cli.Listed("Its numbers of calls.", (1, 2, 3, 4, 8, 25), each=int),
    student_calls=cli.Listed("The students'.", (1, 2, 4), each=int),
)


def main(args, overrides):
    cli.require(args, "teacher", "students", "out")
    from ldm_jax.runs import opened

    rows = {}
    for name, path in [("teacher", args.teacher), ("plain", args.plain)]:
        if path:
            run, conditions = opened.load(path), of_held_out(path, args.num, overrides)
            rows[name] = {n: best(args, run, name, n, conditions) for n in args.calls}
    for path in args.students:
        run, conditions = opened.load(path), of_held_out(path, args.num, overrides)
        name = pathlib.Path(path).name
        how = dict(sampler="consistency", spacing="exact", guidance=1.0)
        cells = {
            n: cell(args, run, name, how | {"steps": n}, conditions) for n in args.student_calls
        }
        rows[name] = cells
    text = table(rows, args.calls)
    (pathlib.Path(args.out) / "table.md").write_text(text)
    print(text)


def of_held_out(path, num: int, overrides):
    """(config, {field: [num, ...]}, records) of held-out records."""
    from ldm_jax.base import config as config_lib
    from ldm_jax.runs import conditions, data

    config = config_lib.overridden(record_lib.read(path), overrides)
    source = data.open_source(config.data)
    made = conditions.make(config, source).of_source(data.held_out(config, source), num)
    return config, *made


def best(args, run, name: str, calls: int, conditions) -> dict:
    """The teacher's best cell with at most so many calls."""
    from ldm_jax.diffusion.process import make_process
    from ldm_jax.stages.sampling import Sampling

    config, cells = conditions[0], []
    process = make_process(**config.process)
    scale = config.sample.guidance if args.guidance is None else args.guidance
    ways = itertools.product(args.samplers, args.spacings, sorted({1.0, scale}))
    for sampler, spacing, guidance in ways:
        how = dict(sampler=sampler, spacing=spacing, guidance=guidance)
        count = lambda steps, how=how: len(Sampling(steps=steps, **how).method(process))
        how["steps"] = max(steps for steps in range(1, calls + 1) if count(steps) <= calls)
        if calls == 1 and (sampler, spacing) != (args.samplers[0], args.spacings[0]):
            continue  # one call is the same by all of them
        cells.append(cell(args, run, name, how, conditions))
    return max(cells, key=lambda found: found["score"])


def cell(args, run, name: str, how: dict, conditions) -> dict:
    """What one way of drawing gives: {"how", "rows", "score", figures...}; drawn once."""
    from ldm_jax.base import disk
    from ldm_jax.stages.sampling import Sampling

    title = "{sampler}_{spacing}_{steps}_g{guidance:g}".format(**how)
    folder = pathlib.Path(args.out) / name / title
    if (folder / "cell.json").exists():
        return json.loads((folder / "cell.json").read_text())
    config, fields, records = conditions
    own = Sampling(**config.sample).over(dict(how, eta=0.0))
    pictures = []
    for begin in range(0, args.num, args.batch_size):
        rows = np.arange(begin, min(begin + args.batch_size, args.num))
        cond = {field: values[rows] for field, values in fields.items()}
        pictures.append(run.draw(len(rows), own, 0, cond, indices=rows))
    pictures = np.concatenate(pictures)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "samples.npz", arr_0=pictures)
    found = {"how": title} | scored(config, fields, records, pictures)
    if args.weights:
        found |= distances(args, folder)
        found.setdefault("score", -found["fd_mobilenet"])
    disk.write_json(folder / "cell.json", found)
    return found


def scored(config, fields, records, pictures) -> dict:
    """The score of scenes: whether each picture shows what it was asked for."""
    from ldm_jax.scenes import scores

    known = {"class": "class_accuracy", "text_ids": "caption_accuracy", "layout_ids": "box_iou"}
    field = next((field for field in known if field in fields), "")
    if config.data.source != "scenes" or not field:
        return {}
    rows = np.asarray(scores.SCORES[field](pictures, records)[known[field]], float)
    return {"rows": rows.tolist(), "score": float(rows.mean())}


def distances(args, folder) -> dict:
    how = [f"--samples={folder / 'samples.npz'}", f"--out={folder / 'evaluation'}"]
    how += [f"--reference={args.teacher}", f"--reference_records={args.reference_records}"]
    cli.call("evaluate", *how, f"--weights={args.weights}", "--metrics=fd,prc,dc")
    found = json.loads((folder / "evaluation" / "summary.json").read_text())
    return {name: found[name] for name in FIGURES} | {"fd_std": found["fd_mobilenet_std"]}


def table(rows, calls) -> str:
    """A markdown table of the scores and of each distance, a column for each number of calls."""
    whole, lines = rows["teacher"][max(calls)], []
    scores = "rows" in whole
    for figure in (("score",) if scores else ()) + tuple(f for f in FIGURES if f in whole):
        lines += [f"`{figure}`:", "", "| |" + "".join(f" {n} |" for n in calls)]
        lines += ["|---|" + "---|" * len(calls)]
        for name, cells in rows.items():
            found = [shown(cells.get(n), figure, whole, name) for n in calls]
            lines.append(f"| {name} |" + "".join(f" {text} |" for text in found))
        lines.append("")
    return "\n".join(lines)


def shown(cell: dict | None, figure: str, whole: dict, name: str) -> str:
    if not cell:
        return ""
    if figure != "score":
        error = f" ± {1.96 * cell['fd_std']:.0f}" if figure == FIGURES[0] else ""
        ratio = f" ({cell[figure] / whole[figure]:.2f})" if whole[figure] else ""
        return f"{cell[figure]:.3g}{error}{ratio}"
    own, theirs = (np.array(x["rows"]) > 0.5 for x in (cell, whole))
    better, worse = int(np.sum(own & ~theirs)), int(np.sum(theirs & ~own))
    p = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    width = 1.96 * np.sqrt(own.mean() * (1 - own.mean()) / len(own))
    told = f"{own.mean():.3f} ± {width:.3f} ({own.mean() / theirs.mean():.0%}"
    how = f", {cell['how']}" if name in ("teacher", "plain") else f", p = {p:.1g}"
    return told + how + ")"


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
