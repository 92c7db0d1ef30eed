"""What the distances of docs/ablation.md are held against, as folders of 512 pictures each.

    python docs/ablation_rivals.py --out=DIR --runs=FIRST_STAGE,FIRST_STAGE,...

DIR/true: training photographs as they are; DIR/NAME of each first stage: the same after encoding
and decoding, which no denoiser on its latents can be expected to beat; DIR/gauss: draws of a
Gaussian with the pixels' mean and covariance; DIR/mean: each photograph's mean colour. Each is
measured by

    python -m ldm_jax.evaluate --samples=DIR/NAME --reference=FIRST_STAGE --weights=FILE \\
        --metrics=fd
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np

import ldm_jax
from ldm_jax import cli
from ldm_jax.base import raster
from ldm_jax.data import transforms
from ldm_jax.runs import data, keys

N, BATCH = 512, 64
FLAGS = dict(
    out=cli.Text("Folder to write to."),
    runs=cli.Listed("First stages of one data set and size."),
)


def main(args, overrides):
    cli.refuse_overrides(overrides)
    cli.require(args, "out", "runs")
    out, config = pathlib.Path(args.out), keys.read(args.runs[0])
    photos = framed(config)
    chosen = photos[np.random.default_rng(1).permutation(len(photos))[:N]]
    write(out / "true", chosen)
    mean = chosen.mean((1, 2), keepdims=True)
    write(out / "mean", np.broadcast_to(mean, chosen.shape))
    write(out / "gauss", gaussian(photos).reshape(chosen.shape))
    for path in args.runs:
        run, shown = ldm_jax.load(path), np.float32(chosen) / 127.5 - 1
        parts = [run.decode(run.encode(shown[i : i + BATCH])) for i in range(0, len(shown), BATCH)]
        write(out / pathlib.Path(path).name, raster.to_uint8(np.concatenate(parts)))


def framed(config) -> np.ndarray:
    """The training photographs as the first stage sees them, uint8 [n, h, w, 3]."""
    source, how = data.training(config, data.open_source(config.data)), config.data
    random = np.random.default_rng(0)
    found = []
    for i in range(len(source)):
        record = source[i]
        for frame in transforms.standard(how.size, "center", False, how.interpolation)[:-1]:
            record = frame(record, random)
        found.append(record["image"])
    return np.stack(found)


def gaussian(photos) -> np.ndarray:
    """N draws [N, pixels] of the Gaussian with the photographs' mean and covariance."""
    flat = photos.reshape(len(photos), -1).astype(np.float64)
    _, sizes, axes = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    draws = np.random.default_rng(2).standard_normal((N, len(sizes)))
    return flat.mean(0) + (draws * sizes / np.sqrt(len(flat) - 1)) @ axes


def write(folder, images):
    for i, image in enumerate(np.asarray(images)):
        raster.write_png(folder / f"{i:04d}.png", image.clip(0, 255).round().astype(np.uint8))


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
