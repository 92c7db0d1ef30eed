"""Writes a page of several trainings: how they differ, in what.

    python -m ldm_jax.compare runs/quickstart/ldm runs/quickstart/cached --out=compare.html

The page is one file with everything in it: the newest evaluation of each run with intervals where
they are known, the keys in which their configs differ, all curves over one another, where the time
went. An interval is of one run alone: whether a recipe is better, several seeds tell (`sweep`).
"""

import pathlib

from ldm_jax import cli
from ldm_jax.base import disk, errors

WORDS = "runs"
FLAGS = dict(
    runs=cli.Listed("Folders of runs; first arguments without -- are some."),
    out=cli.Text("File to write.", "compare.html"),
)


def main(args, overrides):
    cli.refuse_overrides(overrides)
    if len(args.runs) < 2:
        raise errors.UsageError(f"--runs={','.join(args.runs)}: give two runs or more to compare.")
    cli.check_file("--out", args.out, ".html")
    from ldm_jax.reports import page

    disk.write_text(pathlib.Path(args.out), page.comparison(args.runs))
    print(f"page: {args.out}")


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main, words=WORDS)
