"""Writes a sampler as one file that runs without this code (jobs/exported.py)."""

import dataclasses
import json
import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.base import disk, errors, raster, tree, watch
from ldm_jax.diffusion import samplers
from ldm_jax.jobs import settings


def write(wanted: settings.Wanted, file: pathlib.Path, platforms: list[str]) -> dict:
    """Writes the sampler of one batch for these platforms; returns the summary."""
    from safetensors.numpy import save as pack

    seconds = watch.stopwatch()
    if wanted.weaker:
        raise errors.UsageError(
            f"--weaker={wanted.weaker}: an exported sampler holds one run alone."
        )
    found = settings.read(wanted)
    run, sampling, size, n = found.open(), found.sampling, found.size, wanted.batch_size
    model, weights = run.model, run.weights
    names, leaves = zip(*tree.named_leaves(weights))
    structure = jax.tree.structure(weights)

    def draw(flat, seed, first, cond):
        own = jax.tree.unflatten(structure, [flat[name] for name in names])
        keys = samplers.image_keys(seed, first + jnp.arange(n))
        how = dict(sampling=sampling, height=size[0], width=size[1])
        z = model.sample(own["params"], own["frozen"], keys, cond, **how)
        return raster.to_uint8(model.render(own["frozen"], z, sampling))

    abstract = lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype)
    flat = {name: abstract(leaf) for name, leaf in zip(names, leaves)}
    cond = jax.tree.map(abstract, model.example(n, *size))
    number = jax.ShapeDtypeStruct((), np.uint32)
    program = jax.export.export(jax.jit(draw), platforms=platforms)(flat, number, number, cond)
    meta = {
        "n": n,
        "size": list(size),
        "cond": {k: {"shape": list(v.shape), "dtype": str(v.dtype)} for k, v in cond.items()},
        "settings": dataclasses.asdict(sampling),
        "weights": run.digest,
        "step": run.step,
        "platforms": list(platforms),
        "jax": jax.__version__,
    }
    if wanted.decoder:
        meta["decoder"] = run.decoder_digest
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in zip(names, leaves)}
    parts = {"meta.json": json.dumps(meta, indent=2).encode(), "program": program.serialize()}
    parts["weights.safetensors"] = pack(arrays)

    def fill(target):
        with zipfile.ZipFile(target, "w") as archive:
            for name, data in parts.items():
                archive.writestr(name, bytes(data))

    disk.write_atomic(file, fill)
    summary = {"export": str(file), "bytes": file.stat().st_size, "platforms": platforms}
    return summary | meta["settings"] | {"seconds": seconds()}
