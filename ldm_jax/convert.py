"""Converts others' checkpoints into runs, and runs for diffusers.

    python -m ldm_jax.convert compvis   --config=MODEL.yaml --checkpoint=MODEL.ckpt --out=RUN
    python -m ldm_jax.convert diffusers --checkpoint=FOLDER --out=RUN
    python -m ldm_jax.convert dit       --checkpoint=MODEL.pt --out=RUN
    python -m ldm_jax.convert taef2     --checkpoint=FOLDER --out=RUN
    python -m ldm_jax.convert export    --run=RUN --out=FOLDER

compvis reads the official checkpoints (.ckpt, .safetensors, .npz), diffusers the folder of a model
or of a pipeline, dit the file of an official diffusion transformer, taef2 the two files of a tiny
autoencoder. The other commands take a converted run as any other run. Code in a checkpoint is never
executed. --config.key=value changes the config of the run that is written.
"""

import functools
import pathlib

from ldm_jax import cli

VERBS = ("compvis", "diffusers", "dit", "taef2", "export")
FLAGS = dict(
    config=cli.Text("The official yaml of the model, for compvis."),
    checkpoint=cli.Text("The file or folder to read."),
    run=cli.Text("The run to read, for export."),
    out=cli.Text("The folder to write."),
    heads=cli.Integer(
        "Attention heads, if they differ from the yaml's (weights before April 2022) or from those "
        "of the published DiTs.",
        0,
        least=0,
    ),
    tokenizer=cli.Text("Folder of CLIP's vocab.json and merges.txt, for compvis with CLIP.", ""),
    ema=cli.Average(
        "Export the average of the weights, if there is one; --ema=0.07: of that length."
    ),
)


def main(kind, args, overrides):
    cli.require(args, "out", "run" if kind == "export" else "checkpoint")
    from ldm_jax.runs import conversion

    if kind == "export":
        summary = conversion.export(args.run, args.out, args.ema)
    else:
        given = {}
        if kind == "compvis":
            cli.require(args, "config")
            given = dict(config=args.config, heads=args.heads, tokenizer=args.tokenizer)
        if kind == "dit":
            given = dict(heads=args.heads)
        summary = conversion.convert(kind, args.checkpoint, args.out, overrides, **given)
    notes = [f"note: {note}" for note in summary.get("notes", ())]
    cli.finish(pathlib.Path(args.out) / "summary.json", summary, notes)


run = functools.partial(cli.run, __doc__, FLAGS, main, verbs=VERBS)  # argv -> exit code

if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main, verbs=VERBS)
