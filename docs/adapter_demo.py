"""A new word from twenty pictures: the figures of docs/adapters.md.

    python docs/adapter_demo.py --out=DIR --run=BASE           # pictures, captions, words, prompts
    python docs/adapter_demo.py --out=DIR --samples=FOLDER     # how many samples obey the prompts

The word is "bar", a shape that scenes do not have: in scenes of two objects of two colours, squares
are bars, twice and a half as wide as they are high, and so are their captions. The prompts are
captions of other such scenes; their true pictures are measured as the first stage of BASE decodes
them, which no sample can do better.
"""

import dataclasses
import json
import pathlib
import sys

import numpy as np
from PIL import Image
from scipy import ndimage

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import ldm_jax
from ldm_jax import cli
from ldm_jax.base import raster
from ldm_jax.data import captions
from ldm_jax.scenes import checker, scenes

FLAGS = dict(
    out=cli.Text("Folder of the pictures and of prompts.txt."),
    run=cli.Text("Run of a second stage on scenes.", ""),
    samples=cli.Text("Folder of samples of prompts.txt, drawn with --format=png.", ""),
    count=cli.Integer("Pictures to learn from.", 20, least=1),
    prompts=cli.Integer("Captions to draw.", 64, least=1),
)
SIZE, LEARN, ASK = 32, 1_000, 2_000  # pixels of a side; seeds of the pictures and of the prompts
LONG, HIGH = 0.92, 0.37  # halves of a bar's sides, in radii
ELONGATED, FULL = 1.6, 0.7  # of a bar: width by height at least, share of its box at least


def main(args, overrides):
    cli.refuse_overrides(overrides)
    cli.require(args, "out", *(() if args.samples else ("run",)))
    out = pathlib.Path(args.out)
    if args.samples:
        files = sorted((pathlib.Path(args.samples) / "images").glob("*.png"))
        images = np.stack([np.asarray(Image.open(file)) for file in files])
        prompts = (out / "prompts.txt").read_text().splitlines()
        print(json.dumps(measure(images, [prompts[i % len(prompts)] for i in range(len(files))])))
        return
    out.mkdir(parents=True)
    lines = []
    for image, caption in bars(LEARN, args.count):
        lines.append({"file": f"{len(lines):02d}.png", "caption": caption})
        raster.write_png(out / lines[-1]["file"], image)
    (out / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (out / "vocab.txt").write_text("\n".join((*captions.SPECIAL, *scenes.WORDS)) + "\n")
    images, prompts = zip(*bars(ASK, args.prompts))
    (out / "prompts.txt").write_text("\n".join(prompts) + "\n")
    run = ldm_jax.load(args.run)
    real = run.decode(run.encode(np.stack(images) / np.float32(127.5) - 1))
    print("true pictures:", json.dumps(measure(np.asarray(raster.to_uint8(real)), prompts)))


def bars(seed: int, count: int) -> list:
    """(picture, caption) of scenes with one bar among two objects of different colours."""
    found, i = [], -1
    while len(found) < count:
        scene = scenes.compose(seed, i := i + 1, objects=2, combinations="seen")
        square = [scenes.SHAPES[thing.shape] == "square" for thing in scene.things]
        colours = {thing.class_id % len(scenes.COLOURS) for thing in scene.things}
        if sum(square) != 1 or len(colours) == 1:
            continue
        bar, other = (next(t for t, s in zip(scene.things, square) if s == one) for one in (1, 0))
        image, _ = scenes.render(dataclasses.replace(scene, things=(other,)), SIZE)
        axis = (np.arange(SIZE) + 0.5) / SIZE
        beyond = np.maximum(
            np.abs(axis[None] - bar.x) - LONG * bar.radius,
            np.abs(axis[:, None] - bar.y) - HIGH * bar.radius,
        )
        cover = np.clip(0.5 - beyond * SIZE, 0, 1)[..., None]
        image = np.rint(image * (1 - cover) + cover * bar.rgb * 255).astype(np.uint8)
        found.append((image, scenes.caption(scene.things, True).replace("square", "bar")))
    return found


def measure(images, prompts) -> dict:
    """Shares of uint8 pictures [n, h, w, 3] that show the bar, the other object, all as asked."""
    pairs = list(zip(images, checker.find(images), prompts))
    shown = np.array([_shown(*pair) for pair in pairs], float).mean(0)
    return dict(zip(("bar", "other", "caption"), shown.round(3).tolist()))


def _shown(image, found, prompt):
    _, colour, shape, *relation, _, their_colour, their_shape = prompt.split()
    bar = shape == "bar"
    own, wanted = (colour, their_colour) if bar else (their_colour, colour)
    box = _bar(image, list(scenes.COLOURS).index(own))
    name = f"{wanted} {their_shape if bar else shape}"
    others = [thing.box for thing in found if scenes.CLASSES[thing.class_id] == name]
    if box is None or not others:
        return box is not None, bool(others), False
    first, second = (box, others[0]) if bar else (others[0], box)
    middle = lambda box: np.array([box[0] + box[2], box[1] + box[3]]) / 2
    along = np.dot(scenes.RELATIONS[" ".join(relation)], middle(first) - middle(second))
    return True, True, bool(along > 0)


def _bar(image, colour: int):
    """The box of the largest region of a colour, in [0, 1], where it is a bar; or None."""
    plane = lambda rgb: (rgb[..., 0] - (rgb[..., 1] + rgb[..., 2]) / 2) + 1j * (
        np.sqrt(0.75) * (rgb[..., 1] - rgb[..., 2])
    )
    chroma = plane(image.astype(np.float32) / 255)
    hue = plane(np.float32(list(scenes.COLOURS.values()))[colour])
    near = (np.abs(np.angle(chroma / hue)) < np.radians(32)) & (np.abs(chroma) > 0.22)
    labels, count = ndimage.label(near)
    if not count:
        return None
    k = int(np.argmax(ndimage.sum(near, labels, range(1, count + 1))))
    rows, columns = ndimage.find_objects(labels)[k]
    high, wide = rows.stop - rows.start, columns.stop - columns.start
    full = (labels[rows, columns] == k + 1).mean()
    if high < 3 or wide < ELONGATED * high or full < FULL:
        return None
    return np.array([columns.start, rows.start, columns.stop, rows.stop]) / len(image)


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
