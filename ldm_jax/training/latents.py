"""The stage of a config with its frozen weights; a second stage's latents are measured once."""

import itertools
import json
import pathlib

import jax
import jax.numpy as jnp

from ldm_jax.base import disk, errors, remote, tree
from ldm_jax.build import checks
from ldm_jax.build import objects as build
from ldm_jax.engine import hosts
from ldm_jax.stages import api, diffuse


def shapes(config) -> api.Stage:
    """The stage without its frozen weights: what its players are."""
    if config.stage == "autoencode":
        return build.make_autoencode(config).stage()
    return build.make_diffuse(config).stage(None)


def stage(config, source, workdir, opened: checks.Opened | None = None) -> api.Stage:
    """The stage, ready to train or to measure; `workdir` keeps what its latents were found to be.

    opened: what checks.check read already.
    """
    if config.stage == "autoencode":
        return build.make_autoencode(config).stage()
    model = build.make_diffuse(config)
    opened = opened or checks.Opened(model.denoiser.read_frozen())
    params, step = build.codec_params(config.first_stage)
    digest = tree.digest(params) if params else build.IDENTITY
    frozen, cache = opened
    if cache:
        cache.check_weights(config.first_stage, digest)

    def measured() -> dict:
        file = workdir / "latents.json"
        if file.exists():
            return disk.read_json(file)
        statistics = _inherited(config.init_from, digest) or _given(config.latents.scale)
        statistics = statistics or _measure(config, source, cache, model.codec, params)
        origin = {"first_stage": config.first_stage, "step": step, "digest": digest}
        if frozen:
            origin["conditioners"] = tree.digest(frozen)
        disk.write_text(file, json.dumps(statistics | {"origin": origin}, indent=2) + "\n")
        return statistics | {"origin": origin}

    record = hosts.on_first(measured, seconds=3600)
    if record["origin"]["digest"] != digest:
        raise errors.UsageError(
            f"{config.first_stage} has changed since this run began (weights {digest}, then "
            f"{record['origin']['digest']}); train on a copy that stays, or take a fresh --workdir."
        )
    _check_frozen(frozen, record, workdir)
    own = {"conditioners": frozen} if frozen else {}
    return model.stage({"first_stage": params, "scale": jnp.float32(record["scale"])} | own)


def _given(scale: float) -> dict:
    return {"scale": scale} if scale else {}


def _inherited(init_from, digest: str) -> dict:
    """What the source of this run's weights says of its latents, if its first stage is the same."""
    file = pathlib.Path(remote.local(init_from)) / "latents.json"
    record = disk.read_json(file) if init_from and file.is_file() else {"origin": {}}
    return record if record.pop("origin").get("digest") == digest else {}


def _measure(config, source, cache, codec, params) -> dict:
    # One host reads whole batches, so that the scale is the same on any number of hosts.
    share = dict(host=0, hosts=1)
    batches = build.make_data(config, source, ("image",), share, cache).train(0)
    some = itertools.islice(batches, config.latents.batches)
    statistics = diffuse.latent_statistics(codec, params, some, jax.random.key(config.seed))
    batches.close()
    return statistics


def _check_frozen(frozen, record, workdir):
    """Raises UsageError where conditioners' frozen weights are not those that a run began with."""
    began = record["origin"].get("conditioners")
    if frozen and began and tree.digest(frozen) != began:
        raise errors.UsageError(
            f"{workdir} was trained with other weights of its conditioners ({began}, now "
            f"{tree.digest(frozen)}): restore the files that config.conditioners names."
        )
