"""Finds what is wrong with a data set before a job is launched.

    python -m ldm_jax.check_data --config=quickstart:ldm --records=1000
    python -m ldm_jax.check_data --config=ldm_text2img_cc --config.data.path=TARS

Every record (or N of them, evenly spread) is read, cropped and converted to the inputs of the
recipe's conditioners, as in training. Training replaces records that are unreadable or that a
conditioner cannot use; everything else that is reported does no harm. The exit code is 1 if more
than config.data.max_bad_fraction of the records would be replaced. --out writes summary.json.
"""

import pathlib

from ldm_jax import cli
from ldm_jax.base import disk, errors

FLAGS = dict(
    config=cli.Recipe("Recipe, NAME[:variant] or path.py[:variant], or a run."),
    records=cli.Integer("How many records to read, evenly spread; 0 reads all.", 0, least=0),
    out=cli.Text("Folder to write summary.json to.", ""),
)


def main(args, overrides):
    cli.require(args, "config")
    if args.out:
        cli.check_writable("--out", args.out)
    from ldm_jax.evaluation import datacheck
    from ldm_jax.runs import data

    config = data.load(args.config, overrides)
    summary = datacheck.check(config, args.records)
    print(*datacheck.words(summary), sep="\n")
    if args.out:
        file = pathlib.Path(args.out) / "summary.json"
        disk.write_json(file, summary)
        print(f"summary: {file}")
    records, replaced = summary["records"], summary["replaced"]
    if replaced > config.data.max_bad_fraction * records:
        raise errors.RunError(
            f"{replaced} of {records} records cannot be used, more than config.data."
            f"max_bad_fraction={config.data.max_bad_fraction}: mend them, leave them out, or "
            "raise it."
        )
    print(f"{records:,} records read, {replaced} would be replaced.", flush=True)


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
