"""Draws docs/front.png, the first picture of the README: photographs, captions, the ablation.

    python docs/front_picture.py --first_stage=runs/start --photos=CELL/run --text=TEACHER

--first_stage is that of docs/results.md's flowers, --photos the cell of f = 4 of docs/ablation.md,
whose curve is docs/ablation.png, and --text the teacher of docs/few_steps.md: those pages have the
commands that train them. No picture is chosen: they are the first of the seed, and the first
held-out photographs.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from ldm_jax import cli
from ldm_jax.base import errors

CAPTIONS = (
    "a red circle above a blue cross",
    "a blue cross above a red circle",
    "a yellow triangle left of a green square",
    "a green square left of a yellow triangle",
    "a green circle below a red square",
    "a blue triangle right of a yellow cross",
)
COLUMNS = 8  # photographs
FLAGS = dict(
    first_stage=cli.Text("Folder of a first stage of photographs."),
    photos=cli.Text("Folder of a second stage of photographs."),
    text=cli.Text("Folder of a second stage of scenes with captions."),
    curve=cli.Text("The picture of the ablation.", "docs/ablation.png"),
    out=cli.Text("File to write.", "docs/front.png"),
    guidance=cli.Number("Scale of the photographs' guidance.", 2.0, least=0),
    seed=cli.Integer("Seed of the noise.", 0, least=0),
)


def main(args, overrides):
    cli.refuse_overrides(overrides)
    cli.require(args, "first_stage", "photos", "text")
    if not pathlib.Path(args.curve).is_file():
        raise errors.UsageError(f"--curve={args.curve} is not there.")
    cli.check_writable("--out", pathlib.Path(args.out).parent)
    import matplotlib.pyplot as plt
    from PIL import Image

    figure = plt.figure(figsize=(12, 3.5), dpi=80, layout="constrained")
    left, middle, right = figure.subfigures(1, 3, width_ratios=(5.2, 2.5, 4.3))
    grid(left, "Photographs of flowers, f = 4", photographs(args))
    captioned(middle, "Captions, 32x32", captions(args))
    right.suptitle("Which f is best, by compute", fontsize=11)
    axis = right.subplots()
    axis.imshow(Image.open(args.curve).convert("RGB"))
    axis.axis("off")
    figure.savefig(args.out)
    with Image.open(args.out) as drawn:  # flat colours and small photographs: a palette is enough
        drawn.convert("RGB").quantize(256).save(args.out, optimize=True)
    print(f"picture: {args.out}")


def photographs(args) -> list:
    """[(what a row is, images [COLUMNS, h, w, 3] in [0, 1])]."""
    import numpy as np

    import ldm_jax
    from ldm_jax.runs import data

    codec, run = ldm_jax.load(args.first_stage), ldm_jax.load(args.photos)
    held_out = data.held_out(codec.config, data.open_source(codec.config.data))
    batches = data.held_out_batches(codec.config, held_out, ("image",), COLUMNS)
    images = next(iter(batches))["image"][:COLUMNS]
    rows = [("held out", images), ("reconstructed", codec.decode(codec.encode(images)))]
    cond = {"class": np.arange(2 * COLUMNS) % run.num_classes} if run.num_classes else None
    drawn = run.sample(2 * COLUMNS, steps=50, guidance=args.guidance, seed=args.seed, cond=cond)
    rows += [("drawn", row) for row in np.split(np.asarray(drawn), 2)]
    return [(name, np.clip(np.asarray(row) / 2 + 0.5, 0, 1)) for name, row in rows]


def captions(args) -> dict:
    """{caption: images [2, h, w, 3] in [0, 1]}."""
    import numpy as np

    import ldm_jax
    from ldm_jax.runs import conditions, data

    run = ldm_jax.load(args.text)
    made = conditions.make(run.config, data.open_source(run.config.data))
    cond = made.of_prompts([caption for caption in CAPTIONS for _ in range(2)])
    drawn = run.sample(2 * len(CAPTIONS), steps=25, seed=args.seed, cond=cond)
    pairs = np.asarray(drawn).reshape(len(CAPTIONS), 2, *drawn.shape[1:]) / 2 + 0.5
    return dict(zip(CAPTIONS, pairs))


def grid(figure, title: str, rows: list):
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(len(rows), COLUMNS)
    for of_row, (name, images) in zip(axes, rows):
        for axis, image in zip(of_row, images):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[], frame_on=False)
        of_row[0].set_ylabel(name, fontsize=8)


def captioned(figure, title: str, pairs: dict):
    figure.suptitle(title, fontsize=11)
    for axes, (caption, images) in zip(figure.subplots(3, 4).reshape(6, 2), pairs.items()):
        for axis, image in zip(axes, images):
            axis.imshow(image, interpolation="nearest")
            axis.set(xticks=[], yticks=[], frame_on=False)
        words = caption.split()
        middle = 3  # "a red circle" and where it is
        said = " ".join(words[:middle]) + "\n" + " ".join(words[middle:])
        axes[0].set_xlabel(said, fontsize=6.5, loc="left", labelpad=2)


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
