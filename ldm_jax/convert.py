"""Converts checkpoints of other projects into runs, and runs into folders that diffusers loads.

    python -m ldm_jax.convert compvis   --config=MODEL.yaml --checkpoint=MODEL.ckpt --out=RUN
    python -m ldm_jax.convert diffusers --checkpoint=FOLDER --out=RUN
    python -m ldm_jax.convert dit       --checkpoint=MODEL.pt --out=RUN
    python -m ldm_jax.convert taef2     --checkpoint=FOLDER --out=RUN
    python -m ldm_jax.convert lora      --checkpoint=LORA.safetensors --run=BASE --out=RUN
    python -m ldm_jax.convert merge     --run=RUN [--adapters=RUN:0.7,RUN:0.5] --out=RUN
    python -m ldm_jax.convert export    --run=RUN --out=FOLDER

compvis reads the official checkpoints (.ckpt, .safetensors, .npz), diffusers the folder of a model
or of a pipeline, dit the file of an official diffusion transformer, taef2 the two files of a tiny
autoencoder, lora a file of diffusers or of kohya's scripts for the run BASE. merge makes the run of
an adapter, or a run and adapters of it, one of whole weights. The other commands take a converted
run as any other run. Code in a checkpoint is never executed. --config.key=value changes the config
of the run that is written.
"""

import functools
import pathlib

from ldm_jax import cli
from ldm_jax.base import errors

KINDS = ("compvis", "diffusers", "dit", "taef2", "lora", "merge", "export")
NEEDED = dict(compvis=("checkpoint", "config"), lora=("checkpoint", "run"))
NEEDED |= dict(merge=("run",), export=("run",))
GIVEN = dict(compvis=("config", "heads", "tokenizer"), dit=("heads",))  # beside a checkpoint
FLAGS = dict(
    config=cli.Text("The official yaml of the model, for compvis."),
    checkpoint=cli.Text("The file or folder to read."),
    run=cli.Text("The run to read, for lora, merge and export."),
    out=cli.Text("The folder to write."),
    heads=cli.Integer("Attention heads, if not the yaml's or the published DiTs'.", 0, least=0),
    tokenizer=cli.Text("Folder of CLIP's vocab.json and merges.txt, for compvis with CLIP.", ""),
    adapters=cli.SAMPLING["adapters"],
    unet_only=cli.Switch("Leave out what the file has of a text encoder, for lora."),
    ema=cli.Average("Take the average of the weights, where kept; --ema=0.07: of that length."),
)


def main(kind, args, overrides):
    cli.require(args, "out", *NEEDED.get(kind, ("checkpoint",)))
    if args.adapters and kind != "merge":
        raise errors.UsageError(f"--adapters is for merge, not for {kind}: merge them first.")
    from ldm_jax.runs import conversion

    if kind == "export":
        summary = conversion.export(args.run, args.out, args.ema)
    elif kind == "merge":
        summary = conversion.merge(args.run, args.out, args.adapters, args.ema)
    elif kind == "lora":
        summary = conversion.lora(args.checkpoint, args.run, args.out, overrides, args.unet_only)
    else:
        given = {name: args[name].value for name in GIVEN.get(kind, ())}
        summary = conversion.convert(kind, args.checkpoint, args.out, overrides, **given)
    notes = [f"note: {note}" for note in summary.get("notes", ())]
    cli.finish(pathlib.Path(args.out) / "summary.json", summary, notes)


run = functools.partial(cli.run, __doc__, FLAGS, main, verbs=KINDS)  # argv -> exit code

if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main, verbs=KINDS)
