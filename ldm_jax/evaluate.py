"""Evaluates a run on held-out data, or a set of samples.

    python -m ldm_jax.evaluate --run=runs/quickstart/first_stage
    python -m ldm_jax.evaluate --samples=FOLDER|FILE.npz --reference=RUN|FOLDER|FILE.npz \\
        --features=inception [--weights=FILE --metrics=fd,kid,prc,dc,is,fd_infinity]

--run measures what training measures too, over all held-out records: reconstructions and latents of
a first stage, with --features or --weights also distances of images from reconstructions (rfid,
rfd_mobilenet); the denoising error of a second stage. --ema=0.05,0.07 measures, and plots, averages
of these lengths. --samples measures the figures of --metrics; of scenes also class_accuracy, by a
checker. summary.json says how each was measured (docs/evaluation.md). --against=SUMMARY compares
with it.
"""

import pathlib

from ldm_jax import cli
from ldm_jax.base import config as config_lib
from ldm_jax.base import errors

# What is evaluated, and the flags of each, beside those of all.
_IMAGES = ("features", "weights", "metrics", "bootstrap", "out")
TAKES = dict(run=(*_IMAGES, "lpips", "ema", "decoder"), summary=())
TAKES |= dict(samples=(*_IMAGES, "reference", "reference_records", "ema"))
FLAGS = dict(
    run=cli.Text("Folder of a run to evaluate."),
    samples=cli.Text("Samples: a folder that `sample` wrote, a folder of images, or an .npz."),
    summary=cli.Text("Summary of a finished evaluation, to compare with --against."),
    reference=cli.Text("Run, folder or .npz of the reference; the samples' run by default."),
    features=cli.Text("Features: mobilenet (if none are given), inception, dinov2, clip, ...", ""),
    weights=cli.Text("Weights of --features, a file or a name; by default their public ones.", ""),
    metrics=cli.Listed("Some of fd, kid, prc, dc, is, fd_infinity, cmmd, clip_score."),
    reference_records=cli.Integer("Records of the reference at most.", 50_000, least=2),
    bootstrap=cli.Integer("Bootstrap rounds for the error of fd; 0 for no error.", 20, least=0),
    lpips=cli.Listed("LPIPS of a first stage: two files or names, e.g. vgg16,lpips:vgg."),
    ema=cli.Listed("Lengths of averages to measure --run at.", each=float, least=0),
    decoder=cli.Text("Run of a first stage that decodes what a second stage --run draws.", ""),
    plugins=cli.Listed("Modules of your own to import first, as config.plugins."),
    against=cli.Text("Summary of an evaluation to compare with."),
    out=cli.Text("Folder to write to; by default evaluation/ in the run's or samples' folder."),
)


def main(args, overrides):
    cli.refuse_overrides(overrides)
    given = [name for name in TAKES if args[name].value]
    if len(given) != 1:
        raise errors.UsageError("Give one of --run=RUN, --samples=PATH and --summary=FILE.")
    cli.refuse_idle(args, {*given, *TAKES[given[0]], "against", "plugins"}, f"--{given[0]}")
    if args["bootstrap"].present and not (args.features or args.weights or args.metrics):
        raise errors.UsageError(
            f"--bootstrap={args.bootstrap} does nothing without figures of images: give --metrics."
        )
    cli.mirror(args)
    config_lib.import_plugins(args.plugins, "--plugins")
    from ldm_jax.evaluation import lengths, protocol, summaries

    other = summaries.read(args.against, "--against") if args.against else None
    compare = lambda summary: protocol.compare(summary, other, args.against) if other else []
    if args.summary:
        cli.require(args, "against")
        return print(*compare(summaries.read(args.summary, "--summary")), sep="\n")
    out = str(args.out or summaries.place(args.run or args.samples))
    cli.check_out("--out", out)
    found = summaries.measure(cli.fill(summaries.Evaluation, args, out=out), other)
    cli.finish(pathlib.Path(out, "summary.json"), found, lengths.words(found) + compare(found))


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
