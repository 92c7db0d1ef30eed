"""The report and the figure of docs/ablation.md, again, from the figures of its cells.

    python docs/ablation_figure.py --cells=docs/ablation.json --out=DIR

writes DIR/law.png, which is docs/ablation.png, DIR/sizes.png, which is docs/ablation_sizes.png and
there where an f has latents of several sizes, the report index.html, without pictures, and
results.csv, and prints the conclusion. --cells is the cells.json that a sweep left beside its
report. Of several, A,B,C, it takes all cells together, as of one sweep, and DIR/cells.json has
them: so a study is made in parts, on one machine after another.
"""

import itertools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from ldm_jax import cli
from ldm_jax.base import disk, errors
from ldm_jax.sweeps import figures, page

FLAGS = dict(
    cells=cli.Listed("cells.json of a sweep, or of several."),
    out=cli.Text("Folder to write to."),
)


def main(args, overrides):
    cli.refuse_overrides(overrides)
    cli.require(args, "cells", "out")
    (cells, axes), out = together(args.cells), pathlib.Path(args.out)
    summary = page.write(out, cells, axes)
    figures.law(cells, summary["measure"]).savefig(out / "law.png", dpi=100)
    if (sizes := figures.sizes(cells, summary["measure"])) is not None:
        sizes.savefig(out / "sizes.png", dpi=100)
    print(*summary["conclusion"], sep="\n")


def together(files) -> tuple[list[dict], dict]:
    """(cells, axes) of the sweeps in these files: variants as they come first, seeds ascending."""
    parts, found = [disk.read_json(file) for file in files], {}
    for file, part in zip(files, parts, strict=True):
        for cell in part["cells"]:
            if found.setdefault(cell["cell"], cell) is not cell:
                raise errors.UsageError(f"{file}: the cell {cell['cell']} is in another file, too.")
    order = list(dict.fromkeys(str(cell["labels"]) for cell in found.values()))
    key = lambda cell: (order.index(str(cell["labels"])), cell["seed"])
    axes = {axis: [] for part in parts for axis in part["axes"]}
    for axis, labels in axes.items():
        of_parts = [part["axes"].get(axis, []) for part in parts]
        labels += dict.fromkeys(itertools.chain(*of_parts))
    return sorted(found.values(), key=key), axes


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
