"""A new word from twenty pictures: the figures of docs/adapters.md.

    python docs/adapter_demo.py --out=DIR                        # the pictures, prompts, words
    python docs/adapter_demo.py --out=DIR --samples=FOLDER       # how many samples obey the prompts

The pictures are scenes of two objects in which red ones are purple, a colour that no scene has, and
so are their captions. Of samples the checker of scenes is asked with purple made red again, and
what is red made grey, so that a red object in the place of a purple one does not count.
"""

import dataclasses
import json
import pathlib
import sys

import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from ldm_jax import cli
from ldm_jax.data import captions
from ldm_jax.scenes import scenes, scores

FLAGS = dict(
    out=cli.Text("Folder of the pictures and of prompts.txt."),
    samples=cli.Text("Folder of samples of prompts.txt, drawn with --format=png.", ""),
    count=cli.Integer("Pictures to learn from.", 20, least=1),
    prompts=cli.Integer("Captions to draw, of other scenes.", 64, least=1),
)
PURPLE = np.float32((0.70, 0.16, 0.80))  # more than 60 degrees of hue from all of scenes.COLOURS
SIZE, SEEDS = 32, {"learn": 1_000, "ask": 2_000}


def main(args, overrides):
    cli.refuse_overrides(overrides)
    cli.require(args, "out")
    out = pathlib.Path(args.out)
    if args.samples:
        files = sorted((pathlib.Path(args.samples) / "images").glob("*.png"))
        images = np.stack([np.asarray(Image.open(file)) for file in files])
        prompts = (out / "prompts.txt").read_text().splitlines()
        print(json.dumps(measure(images, [prompts[i % len(prompts)] for i in range(len(files))])))
        return
    out.mkdir(parents=True)
    lines, real, told = [], [], []
    for scene, caption in purple(SEEDS["learn"], args.count):
        lines.append({"file": f"{len(lines):02d}.png", "caption": caption})
        Image.fromarray(scenes.render(scene, SIZE)[0]).save(out / lines[-1]["file"])
    (out / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (out / "vocab.txt").write_text("\n".join((*captions.SPECIAL, *scenes.WORDS)) + "\n")
    for scene, caption in purple(SEEDS["ask"], args.prompts):
        real.append(scenes.render(scene, SIZE)[0])
        told.append(caption)
    (out / "prompts.txt").write_text("\n".join(told) + "\n")
    print("true pictures of the prompts:", json.dumps(measure(np.stack(real), told)))


def purple(seed: int, count: int):
    """`count` scenes with one red object among two, which is purple, and their captions."""
    found, i = [], -1
    while len(found) < count:
        scene = scenes.compose(seed, i := i + 1, objects=2)
        red = [thing.class_id % len(scenes.COLOURS) == 0 for thing in scene.things]
        if sum(red) != 1:
            continue
        light = np.float32(0.88 + 0.17 * (i % 7) / 6)
        recolour = lambda thing, light=light: dataclasses.replace(thing, rgb=PURPLE * light)
        things = tuple(recolour(t) if one else t for t, one in zip(scene.things, red))
        caption = scenes.caption(scene.things, relations=True).replace("red", "purple")
        found.append((dataclasses.replace(scene, things=things), caption))
    return found


def measure(images, prompts) -> dict:
    """Means of the checker's scores of uint8 pictures [n, h, w, 3]."""
    x = images.astype(np.float32)
    r, g, b = (x[..., i] for i in range(3))
    hue = np.degrees(np.arctan2(np.sqrt(0.75) * (g - b), r - (g + b) / 2))
    near = lambda angle: np.abs((hue - angle + 180) % 360 - 180) < 32
    as_red = np.stack([r, g, g], -1)
    grey = np.repeat(x.mean(-1, keepdims=True), 3, -1)
    x = np.where(near(-68)[..., None], as_red, np.where(near(0)[..., None], grey, x))
    asked = [{"caption": prompt.replace("purple", "red")} for prompt in prompts]
    found = scores.caption_scores(x.astype(np.uint8), asked)
    return {name: round(float(np.mean(value)), 3) for name, value in found.items()}


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
