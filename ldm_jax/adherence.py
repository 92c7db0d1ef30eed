"""Measures how well samples match their conditions.

    python -m ldm_jax.adherence --run=runs/quickstart/ldm --out=adherence --num=64 --guidance=1,2,4
    python -m ldm_jax.adherence --run=RUN --out=DIR --config.data.combinations=unseen

Samples are drawn under held-out conditions. Of a run that was trained on the procedural scenes, a
checker recognises their objects from the pixels; of any other run edges, enlargements and holes are
held against the true pictures. --config.data.* changes the data that conditions come from;
combinations=unseen asks for pairs of objects that training never showed together.

DIR holds grid.png (each sample beside the picture that its condition belongs to) and summary.json.
Scores that begin with `real_` are those of the true pictures, encoded and decoded by the first
stage; samples can hardly score higher. All guidance scales start from the same noise: the summary's
own scores are those of the last scale, and `by_guidance` has the scores of each.
`marginal_distance` is the distance of the frequencies of the drawn classes from uniform ones, which
are those of the data.
"""

import pathlib

from ldm_jax import cli
from ldm_jax.base import errors

FLAGS = dict(
    run=cli.Text("Folder of a trained second stage."),
    out=cli.Text("Folder to write to."),
    num=cli.Integer("How many pictures to draw.", 256, least=1),
    batch_size=cli.Integer("Pictures drawn at a time.", 64, least=1, most=2**16),
    steps=cli.Integer("Number of steps of the time grid; the run's own by default.", least=1),
    guidance=cli.Listed("Scales of guidance; the run's own by default.", each=float, least=0),
    conditioning_scale=cli.Number(
        "How many times a control counts; by default the run's.", None, 0
    ),
    null=cli.Switch("Draw under the null condition."),
    seed=cli.Integer("Seed of the noise.", 0, least=0, most=2**32 - 1),
)


def main(args, overrides):
    cli.require(args, "run", "out")
    if args.null and args.guidance:
        raise errors.UsageError(
            "--guidance does nothing with --null, which draws under no condition: leave it out."
        )
    cli.mirror(args)
    cli.check_out("--out", args.out)
    from ldm_jax.evaluation import adherence

    wanted, out = cli.fill(adherence.Adherence, args), pathlib.Path(args.out)
    summary = adherence.measure(wanted, overrides, out / "grid.png")
    cli.finish(out / "summary.json", summary, adherence.words(summary))


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
