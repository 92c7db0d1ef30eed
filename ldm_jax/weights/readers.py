"""Frozen weights by name: what reads the files that a conditioner or a measure needs."""

from ldm_jax.base import registry
from ldm_jax.weights import clip, inception, lpips, mobilenet, vit

# A conditioner's reader takes the conditioner and returns its Linen collection "frozen"; a feature
# extractor's takes the path of its weights.
READERS = registry.Registry("reader of weights")
READERS.register("clip")(clip.read)
READERS.register("lpips")(lpips.load)  # (backbone, heads), two paths
READERS.register("inception")(inception.load)
READERS.register("mobilenet")(mobilenet.load)
READERS.register("dinov2")(vit.read_dinov2)
READERS.register("clip_pair")(vit.read_clip)


def read_conditioners(denoiser) -> dict:
    """A Denoiser's collection "frozen": {"conditioners_<label>": tree} of those with a reader."""
    return {c.name: READERS.get(c.reader)(c) for c in denoiser.conditioners if c.reader}
