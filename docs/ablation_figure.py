"""The report and the figure of docs/ablation.md, again, from the figures of its cells.

    python docs/ablation_figure.py --cells=docs/ablation.json --out=DIR

writes DIR/law.png, which is docs/ablation.png, the report index.html, without pictures, and
results.csv, and prints the conclusion. --cells is the cells.json that a sweep left beside its
report.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from ldm_jax import cli
from ldm_jax.base import disk
from ldm_jax.sweeps import figures, page

FLAGS = dict(
    cells=cli.Text("cells.json of a sweep."),
    out=cli.Text("Folder to write to."),
)


def main(args, overrides):
    cli.refuse_overrides(overrides)
    cli.require(args, "cells", "out")
    kept, out = disk.read_json(args.cells), pathlib.Path(args.out)
    summary = page.write(out, kept["cells"], kept["axes"])
    figures.law(kept["cells"], summary["measure"]).savefig(out / "law.png", dpi=100)
    print(*summary["conclusion"], sep="\n")


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
