"""Compiles a config for absent devices: does it fit, how fast is it?

    python -m ldm_jax.plan --config=quickstart:first_stage --topology=cpu:8
    python -m ldm_jax.plan --config=ldm_celebahq --topology=v5e:2x4    # wants libtpu
    python -m ldm_jax.plan --config=... --topology=cuda:8 --target=h200.txtpb

Compiled are the training step that `train` runs and the program that `sample` runs, sharded as the
config says; with --parts also the encoder and the decoder of the first stage. Weights and data are
not needed, only their shapes: --config.first_stage may name a recipe instead of a trained run. If a
device's memory does not suffice, the exit code is 2 and the message says what would help.
"""

import pathlib

from ldm_jax import cli
from ldm_jax.base import disk

USUAL, CODEC = ("train", "sample"), ("encode", "decode")
FLAGS = dict(
    config=cli.Recipe("Recipe, NAME[:variant] or path.py[:variant], or a run."),
    topology=cli.Text("Devices to compile for: v5e:4x4, v5p:2x2x1, v6e:2x4, cuda:8, cpu:8."),
    target=cli.Text("File that describes the GPU, for cuda.", ""),
    parts=cli.Listed(
        "Programs to compile; there are also encode and decode.", USUAL, of=(*USUAL, *CODEC)
    ),
    cached=cli.Switch("Train a second stage on cached latents instead of images."),
    effort=cli.Choice("Effort of the compiler.", "reduced", of=("reduced", "full")),
    largest=cli.Switch("Find the largest batch that fits."),
    sample_batch=cli.Integer("Batch of all parts but train; 0 for one image a device.", 0, least=0),
    memory_gib=cli.Number("Memory of a device in GiB; 0 for that of the topology.", 0.0, least=0),
    out=cli.Text("Folder to write summary.json and the compiled programs' HLO to.", ""),
)


def main(args, overrides):
    cli.require(args, "config", "topology")
    if args.out:
        cli.check_out("--out", args.out)
    from ldm_jax.cost import estimates, reports
    from ldm_jax.runs import data

    config = data.load(args.config, overrides)
    estimator = cli.fill(estimates.Estimator, args, config=config)
    summary = estimator.estimate(args.config)
    print(*reports.of_estimate(summary), sep="\n")
    if args.out:
        for name, text in estimator.texts.items():
            disk.write_text(pathlib.Path(args.out) / f"{name}.hlo.txt", text)
        cli.finish(pathlib.Path(args.out) / "summary.json", summary)
    estimator.refuse_misfits(summary)


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
