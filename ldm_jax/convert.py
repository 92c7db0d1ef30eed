"""Converts others' checkpoints into runs, and runs for diffusers.

    python -m ldm_jax.convert compvis   --config=MODEL.yaml --checkpoint=MODEL.ckpt --out=RUN
    python -m ldm_jax.convert diffusers --checkpoint=FOLDER|hf:OWNER/NAME --out=RUN
    python -m ldm_jax.convert dit       --checkpoint=MODEL.pt --out=RUN
    python -m ldm_jax.convert uvit      --checkpoint=MODEL.pth --out=RUN
    python -m ldm_jax.convert taef2     --checkpoint=FOLDER|hf:OWNER/NAME --out=RUN
    python -m ldm_jax.convert lora      --checkpoint=LORA.safetensors --run=BASE --out=RUN
    python -m ldm_jax.convert control   --checkpoint=FOLDER|hf:OWNER/NAME --run=BASE --out=RUN
    python -m ldm_jax.convert merge     --run=RUN [--adapters=RUN:0.7,RUN:0.5] --out=RUN
    python -m ldm_jax.convert export    --run=RUN --out=FOLDER | --push=hf:OWNER/NAME

compvis reads official checkpoints (.ckpt, .safetensors, .npz), diffusers a model's or a pipeline's
folder, dit and uvit an official transformer, taef2 a tiny autoencoder, lora a file of diffusers or
kohya's scripts for the run BASE, control a ControlNetModel's folder for it. merge makes one run of
an adapter, or of a run and its adapters. No code in them is executed. --config.key=value changes
the config that is written. --push: see docs/weights.md.
"""

import functools
import pathlib

from ldm_jax import cli
from ldm_jax.base import remote

TAKES = dict(compvis=("checkpoint", "config", "heads", "tokenizer"), diffusers=("checkpoint",))
TAKES |= dict(dit=("checkpoint", "heads"), uvit=("checkpoint", "heads"), taef2=("checkpoint",))
TAKES |= dict(lora=("checkpoint", "run", "unet_only"), control=("checkpoint", "run"))
TAKES |= dict(merge=("run", "adapters", "ema"), export=("run", "ema"))  # beside --out
VERBS = tuple(TAKES)
PUSHING = ("push", "public", "license", "data_license", "evaluations")  # beside those of export
FLAGS = dict(
    config=cli.Text("The official yaml of the model, for compvis."),
    checkpoint=cli.Text("The file or folder to read, or its name (docs/weights.md)."),
    run=cli.Text("The run to read, for lora, control, merge and export."),
    out=cli.Text("The folder to write.", ""),
    heads=cli.Integer("Attention heads, if not the yaml's or the published models'.", 0, 0),
    tokenizer=cli.Text("Folder of CLIP's vocab.json and merges.txt, for compvis with CLIP.", ""),
    adapters=cli.SAMPLING["adapters"],
    unet_only=cli.Switch("Leave out what the file has of a text encoder, for lora."),
    ema=cli.Average("Take the average of the weights, where kept; --ema=0.07: of that length."),
    push=cli.Text("Where export publishes the run, privately: hf:OWNER/NAME.", ""),
    public=cli.Switch("Let everybody read what is published."),
    license=cli.Text("Licence of the weights that are published, as the Hub calls it.", ""),
    data_license=cli.Text("Licence of the data, for the card.", ""),
    evaluations=cli.Listed("Summaries of `evaluate` of these weights, for the card."),
)


def main(kind, args, overrides):
    pushed = bool(args.push) and kind == "export"
    given = {name: args[name].value for name in (*TAKES[kind], *(PUSHING if pushed else ()))}
    cli.refuse_idle(args, {*given, "out"}, kind)
    needed = [name for name in given if FLAGS[name].default is None]
    cli.require(args, *needed, *([] if pushed else ["out"]))
    from ldm_jax.runs import conversion, publishing

    call = publishing.publish if pushed else getattr(conversion, kind, None)
    if "checkpoint" in given:
        call = functools.partial(conversion.convert, kind, overrides=overrides)
    here = args.out and remote.local(args.out, write=True, whole=False)
    summary = call(out=args.out, **given)
    file = pathlib.Path(here, "summary.json") if here else None
    cli.finish(file, summary, [f"note: {note}" for note in summary.get("notes", ())])


run = functools.partial(cli.run, __doc__, FLAGS, main, verbs=VERBS)  # argv -> exit code

if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main, verbs=VERBS)
