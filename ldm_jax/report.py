"""Writes a page of a training: curves, pictures, config, time.

    python -m ldm_jax.report runs/quickstart/ldm
    python -m ldm_jax.report runs/quickstart/ldm --recipe=quickstart:ldm --out=ldm.html

The page is one file with everything in it. It tells how far the run is, what it was started from,
rollbacks and replaced records, the newest evaluation with intervals where they are known, all
curves, grids over time, where the time went, and how the config differs from a recipe: from
--recipe, or from that which differs least. A run may still be training.
"""

import pathlib

from ldm_jax import cli
from ldm_jax.base import disk

WORDS = "run"
FLAGS = dict(
    run=cli.Text("Folder of a run; a first argument without -- is one."),
    recipe=cli.Recipe("Recipe to compare the config with; the nearest one by default.", ""),
    out=cli.Text("File to write; report.html in the run's folder by default.", ""),
)


def main(args, overrides):
    cli.refuse_overrides(overrides)
    cli.require(args, "run")
    out = args.out or f"{args.run}/report.html"
    cli.check_file("--out", out, ".html")
    from ldm_jax.reports import page

    disk.write_text(pathlib.Path(out), page.training(args.run, args.recipe))
    print(f"page: {out}")


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main, words=WORDS)
