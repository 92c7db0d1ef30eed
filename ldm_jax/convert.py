"""Converts checkpoints of other projects into runs, and runs into folders that diffusers loads.

    python -m ldm_jax.convert compvis   --config=MODEL.yaml --checkpoint=MODEL.ckpt --out=RUN
    python -m ldm_jax.convert diffusers --checkpoint=FOLDER|hf:OWNER/NAME --out=RUN
    python -m ldm_jax.convert dit       --checkpoint=MODEL.pt --out=RUN
    python -m ldm_jax.convert taef2     --checkpoint=FOLDER|hf:OWNER/NAME --out=RUN
    python -m ldm_jax.convert export    --run=RUN --out=FOLDER | --push=hf:OWNER/NAME

compvis reads official checkpoints (.ckpt, .safetensors, .npz), diffusers a model's or a pipeline's
folder, dit the file of a diffusion transformer, taef2 those of a tiny autoencoder. No code in them
is executed. --config.key=value changes the config that is written. --push: see docs/weights.md.
"""

import functools
import pathlib

from ldm_jax import cli
from ldm_jax.base import errors

KINDS = ("compvis", "diffusers", "dit", "taef2", "export")
PUSHING = ("push", "public", "license", "data_license", "evaluations")
FLAGS = dict(
    config=cli.Text("The official yaml of the model, for compvis."),
    checkpoint=cli.Text("The file or folder to read, or its name (docs/weights.md)."),
    run=cli.Text("The run to read, for export."),
    out=cli.Text("The folder to write.", ""),
    heads=cli.Integer("Attention heads, if not the yaml's or those of the published DiTs.", 0, 0),
    tokenizer=cli.Text("Folder of CLIP's vocab.json and merges.txt, for compvis with CLIP.", ""),
    ema=cli.Average("Export the average of the weights, if there is one; --ema=0.07: of length."),
    push=cli.Text("Where export publishes the run, privately: hf:OWNER/NAME.", ""),
    public=cli.Switch("Let everybody read what is published."),
    license=cli.Text("Licence of the weights that are published, as the Hub calls it.", ""),
    data_license=cli.Text("Licence of the data, for the card.", ""),
    evaluations=cli.Listed("Summaries of `evaluate` of these weights, for the card."),
)


def main(kind, args, overrides):
    given = lambda *names: {name: args[name].value for name in names}
    if any(given(*PUSHING).values()) and not (args.push and kind == "export"):
        raise errors.UsageError(f"--{', --'.join(PUSHING)} are of export --push=hf:OWNER/NAME.")
    needed = {"export": ["run"], "compvis": ["config", "checkpoint"]}.get(kind, ["checkpoint"])
    cli.require(args, *needed, *([] if args.push else ["out"]))
    from ldm_jax.runs import conversion, publishing

    if args.push:
        summary = publishing.publish(**given("run", "out", "ema", *PUSHING))
    elif kind == "export":
        summary = conversion.export(args.run, args.out, args.ema)
    else:
        own = given(*{"compvis": ("config", "heads", "tokenizer"), "dit": ["heads"]}.get(kind, ()))
        summary = conversion.convert(kind, args.checkpoint, args.out, overrides, **own)
    file = pathlib.Path(args.out) / "summary.json" if args.out else None
    cli.finish(file, summary, [f"note: {note}" for note in summary.get("notes", ())])


run = functools.partial(cli.run, __doc__, FLAGS, main, verbs=KINDS)  # argv -> exit code

if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main, verbs=KINDS)
