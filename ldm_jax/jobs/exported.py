"""A whole sampler in one file, run without the model's code (docs/samplers.md).

    python -m ldm_jax.sample --run=RUN --export=sampler.zip --batch_size=8 --platforms=cpu,cuda

    from ldm_jax.jobs import exported
    sampler = exported.load("sampler.zip")
    images = sampler(seed=0, cond={"class": ids})     # uint8 [8, h, w, 3]

The file is a zip of `program` (StableHLO, by jax.export), `weights.safetensors` and `meta.json`
(shapes, settings, platforms). Nothing in it is Python, so opening a stranger's file runs no code of
his beyond the XLA program. Needs jax, numpy and safetensors; this module stands alone.
"""

import json
import zipfile

import jax
import numpy as np

MEMBERS = ("meta.json", "program", "weights.safetensors")  # as jobs/export.py writes them


class Sampler:
    """Draws images first .. first + n - 1 in one call; n and the sizes are fixed.

    Attributes:
      meta: n, size, the conditions' shapes, settings, weights' digest, platforms.
    """

    def __init__(self, meta: dict, program: bytes, weights: dict):
        self.meta = meta
        self._call = jax.jit(jax.export.deserialize(program).call)
        self._weights = jax.device_put(weights)

    def __call__(self, seed: int = 0, first: int = 0, cond: dict | None = None) -> np.ndarray:
        """uint8 [n, h, w, 3]. cond: {field: [n, ...]}, as meta["cond"] lists them."""
        cond, want = cond or {}, self.meta["cond"]
        given = {k: list(np.shape(v)) for k, v in cond.items()}
        if given != {k: v["shape"] for k, v in want.items()}:
            raise ValueError(f"cond has the shapes {given}; this sampler wants {want}.")
        arrays = {k: np.asarray(v, want[k]["dtype"]) for k, v in cond.items()}
        images = self._call(self._weights, np.uint32(seed), np.uint32(first), arrays)
        return np.asarray(images)


def load(path) -> Sampler:
    """Opens a file that `sample --export` wrote.

    Raises:
      ValueError: it is none, or was exported for other platforms than this machine's.
    """
    from safetensors.numpy import load as read_tensors

    try:
        with zipfile.ZipFile(path) as archive:
            meta, program, weights = (archive.read(name) for name in MEMBERS)
    except (zipfile.BadZipFile, KeyError) as e:
        raise ValueError(f"{path} is not an exported sampler: {e}") from e
    meta = json.loads(meta)
    here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if here not in meta["platforms"]:
        raise ValueError(
            f"{path} was exported for {', '.join(meta['platforms'])}; this machine has {here}."
        )
    return Sampler(meta, program, read_tensors(weights))
