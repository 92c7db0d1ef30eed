"""Converts others' checkpoints into runs, and runs for diffusers.

    python -m ldm_jax.convert compvis   --config=MODEL.yaml --checkpoint=MODEL.ckpt --out=RUN
    python -m ldm_jax.convert diffusers --checkpoint=FOLDER --out=RUN
    python -m ldm_jax.convert dit       --checkpoint=MODEL.pt --out=RUN
    python -m ldm_jax.convert taef2     --checkpoint=FOLDER --out=RUN
    python -m ldm_jax.convert lora      --checkpoint=LORA.safetensors --run=BASE --out=RUN
    python -m ldm_jax.convert merge     --run=RUN [--adapters=RUN:0.7,RUN:0.5] --out=RUN
    python -m ldm_jax.convert export    --run=RUN --out=FOLDER

compvis reads official checkpoints (.ckpt, .safetensors, .npz), diffusers the folder of a model or a
pipeline, dit the file of an official diffusion transformer, taef2 a tiny autoencoder's two, lora a
file of diffusers or kohya's scripts, for the run BASE. merge makes one run of whole weights of that
of an adapter, or of a run and its adapters. The other commands take a converted run as any other
run. No code in a checkpoint is executed. --config.key=value changes the config of the new run.
"""

import functools
import pathlib

from ldm_jax import cli
from ldm_jax.base import errors

# Flags of each kind, beside --out.
TAKES = dict(compvis=("checkpoint", "config", "heads", "tokenizer"), diffusers=("checkpoint",))
TAKES |= dict(dit=("checkpoint", "heads"), taef2=("checkpoint",))
TAKES |= dict(lora=("checkpoint", "run", "unet_only"), merge=("run", "adapters", "ema"))
TAKES |= dict(export=("run", "ema"))
VERBS = tuple(TAKES)
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
    given = {name: args[name].value for name in TAKES[kind]}
    cli.require(args, "out", *(name for name in given if FLAGS[name].default is None))
    if args.adapters and "adapters" not in given:
        raise errors.UsageError(f"--adapters is for merge, not for {kind}: merge them first.")
    from ldm_jax.runs import conversion

    if "checkpoint" in given:
        summary = conversion.convert(kind, out=args.out, overrides=overrides, **given)
    else:
        summary = getattr(conversion, kind)(out=args.out, **given)
    notes = [f"note: {note}" for note in summary.get("notes", ())]
    cli.finish(pathlib.Path(args.out) / "summary.json", summary, notes)


run = functools.partial(cli.run, __doc__, FLAGS, main, verbs=VERBS)  # argv -> exit code

if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main, verbs=VERBS)
