"""Edits pictures with a trained second stage, or draws series.

    python -m ldm_jax.edit interpolate --run=runs/quickstart/ldm --out=between --seeds=1,2,3
    python -m ldm_jax.edit progress    --run=runs/quickstart/ldm --out=steps --num=8
    python -m ldm_jax.edit vary        --run=runs/quickstart/ldm --out=vary --images=samples/images
    python -m ldm_jax.edit reconstruct --run=runs/quickstart/ldm --out=same --images=samples/images
    python -m ldm_jax.edit inpaint     --run=RUN --out=DIR --images=DIR --masks=DIR
    python -m ldm_jax.edit upscale     --run=RUN --out=DIR --images=DIR
    python -m ldm_jax.edit control     --run=RUN --out=DIR --images=DIR --labels=3,5

inpaint redraws the white area of a mask and keeps every other pixel; a run that was trained for
inpainting gets image and mask as its conditions. vary adds noise to a picture (strength 0: none,
1: nothing of it is left) and denoises it again. upscale needs a run that was trained for
super-resolution. control draws other pictures with the edges of the given ones, by a run that
learnt to (configs/control.py). interpolate goes from each picture, or each seed, to the next, and
also writes an animation. progress shows x_t and the predicted x_0 while sampling. reconstruct
encodes and decodes with the first stage. Pictures are cropped to the centre and resized to --size.
"""

import pathlib

from ldm_jax import cli
from ldm_jax.base import errors, values, watch

# Flags of each verb, beside those of all; those that draw take the flags of SAMPLING, too.
TAKES = dict(inpaint=("images", "masks", "batch_size"), vary=("images", "strength", "batch_size"))
TAKES |= dict(upscale=("images", "batch_size"), control=("images", "batch_size"))
TAKES |= dict(interpolate=("images", "seeds", "strength", "frames", "batch_size"))
TAKES |= dict(progress=("num", "frames"), reconstruct=("images", "batch_size", "decoder", "ema"))
VERBS = tuple(TAKES)
FLAGS = dict(
    run=cli.Text("Folder of a trained run."),
    out=cli.Text("Folder to write to."),
    images=cli.Text("A picture, or a folder of pictures."),
    masks=cli.Text("Folder of masks with the pictures' names, or one mask for all."),
    strength=cli.Number("Noise level that vary and interpolate add to pictures.", 0.6, 0, 1),
    seeds=cli.Listed(
        "Seeds of noise to interpolate between, instead of pictures.", each=values.whole, least=0
    ),
    frames=cli.Integer("Frames from one picture to the next; for progress, of all.", 8, least=2),
    num=cli.Integer("How many pictures progress shows.", 8, least=1),
    labels=cli.Text("Class ids that the pictures take in turn; none by default.", ""),
    size=cli.Text("Height and width in pixels, HxW; the training size by default.", ""),
    batch_size=cli.Integer("Pictures drawn at a time.", 16, least=1, most=2**16),
    **cli.SAMPLING,
)


def main(kind, args, overrides):
    cli.refuse_overrides(overrides)
    cli.require(args, "run", "out")
    draws = () if kind == "reconstruct" else ("labels", *cli.drawing())
    cli.refuse_idle(args, {"run", "out", "size", *TAKES[kind], *draws}, kind)
    if args.seeds and args["strength"].present:
        raise errors.UsageError("--strength does nothing with --seeds: it is of pictures.")
    cli.mirror(args)
    cli.check_out("--out", args.out)
    from ldm_jax.jobs import editing

    seconds = watch.stopwatch()
    summary = getattr(editing, kind)(cli.fill(editing.Edit, args, sampling=cli.sampling(args)))
    summary = {"edit": kind, "run": args.run} | summary | {"seconds": seconds()}
    cli.finish(pathlib.Path(args.out) / "summary.json", summary)


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main, verbs=VERBS)
