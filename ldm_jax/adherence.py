"""Draws under held-out conditions of scenes and measures how well they are obeyed.

    python -m ldm_jax.adherence --run=RUN --out=DIR [--num=256 --guidance=1,2,4 --steps=50 --seed=0]
        [--config.data.combinations=unseen]
    python -m ldm_jax.adherence --run=RUN --out=DIR --null    # under the null condition instead

The run has to be trained on the procedural scenes, whose checker reads from pixels alone what is
in a picture. --config.data.* changes the data that conditions come from, here to pairs of objects
that training never showed together. DIR holds grid.png (drawn, and beside it the record of each
condition) and summary.json, where `real_*` is what the records' own pictures score after the first
stage: no sample can be expected to do better. Several guidance scales are drawn one after the
other, from the same noise; the last one's scores are the summary's own, `by_guidance` has them all.
`marginal_distance` is how far the objects' classes are from being equally frequent, as in the data.
"""

import pathlib

from ldm_jax import cli

FLAGS = dict(
    run=cli.Text("Folder of a trained second stage."),
    out=cli.Text("Folder to write to."),
    num=cli.Integer("How many pictures to draw.", 256, least=1),
    batch_size=cli.Integer("Pictures drawn at a time.", 64, least=1),
    steps=cli.Integer("Number of steps of the time grid; the run's own by default."),
    guidance=cli.Listed("Scales of guidance; the run's own by default.", each=float, least=0),
    null=cli.Switch("Draw under the null condition."),
    seed=cli.Integer("Seed of the noise.", 0, least=0),
)


def main(args, overrides):
    cli.require(args, "run", "out")
    cli.mirror(args)
    cli.check_writable("--out", args.out)
    from ldm_jax.evaluation import adherence

    wanted, out = cli.fill(adherence.Adherence, args), pathlib.Path(args.out)
    summary = adherence.measure(wanted, overrides, out / "grid.png")
    cli.finish(out / "summary.json", summary, adherence.words(summary))


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
