"""What a new first stage starts from, and what it has to beat: both measured on training images."""

import itertools

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from ldm_jax.base import tree
from ldm_jax.engine import hosts
from ldm_jax.metrics import linear
from ldm_jax.models.bottleneck import BOTTLENECKS
from ldm_jax.runs import data

IMAGES, PIXELS = 1_024, 2**24  # of the first training batches are looked at; pixels: at most
PATCHES = 8  # for each number of a patch, for which more images may be needed where f is large
POINTS = 16  # latents for each entry of a codebook, at most


def images(config: ConfigDict, source, f: int) -> np.ndarray:
    """The first training images as a single host reads them, so that many hosts see the same.

    f: patches of f x f pixels are what is looked at. Their components, of 3 f^2 numbers each, are
    those of other images too only where there are several times as many patches.
    """
    needed = PATCHES * 3 * f**2 * f**2 // config.data.size**2
    count = min(max(IMAGES, needed), max(1, PIXELS // config.data.size**2))
    count = min(count, max(IMAGES, len(data.training(config, source))))
    batches = data.make(config, source, ("image",), dict(host=0, hosts=1)).train(0)
    with batches as some:
        few = itertools.islice(some, -(-count // config.batch_size))
        return np.concatenate([batch["image"] for batch in few])[:count]


def measure(config: ConfigDict, source, record, model) -> dict:
    """What models.shortcut.started takes, float32, measured by one host and handed to the others.

    The run records a digest of it (start.json).

    Args:
      model: the autoencoder.
    """
    found = {}

    def measured():
        x = images(config, source, model.f // model.path_fold)
        made, share = arrays(x, model, config.seed)
        found.update(made)
        record.write(start={"digest": tree.digest(found), "images": len(x), "explained": share})
        return {name: array.shape for name, array in found.items()}

    shapes = hosts.on_first(measured, seconds=3600)
    if not hosts.several():
        return found
    own = {name: found.get(name, np.zeros(shape, np.float32)) for name, shape in shapes.items()}
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(own))


def arrays(x, model, seed: int) -> tuple[dict, float]:
    """The shortcut's arrays from images x [n, h, w, 3], and a codebook where the model has one.

    Beside them the share of the patches' variance that the components explain.
    Latents have deviation 1 in each channel; those that a codebook quantises have it on the whole,
    so that the nearest entry is the nearest patch too.
    """
    fold = model.path_fold
    found = linear.components(x, model.f // fold, model.latent_channels // fold**2)
    scale = found.deviations
    entries = BOTTLENECKS.get(model.bottleneck).entries
    if entries:
        scale = np.full_like(scale, np.sqrt(np.mean(scale**2)))
    into, out = found.vectors / scale, (found.vectors * scale).T
    made = {"mean": found.mean, "into": into, "out": out}
    if entries:
        z = linear.patches((linear.patches(x, found.f) - found.mean) @ into, fold)
        z = z.reshape(-1, model.latent_channels)
        some = z[:: max(1, len(z) // (POINTS * model.codebook_size))]
        made["codebook"] = linear.means(some, model.codebook_size, seed)
    return {name: array.astype(np.float32) for name, array in made.items()}, found.explained
