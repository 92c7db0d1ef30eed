"""Other people's checkpoints as runs, and runs as folders that diffusers loads; see `convert`."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ldm_jax.base import config as config_lib
from ldm_jax.base import defaults, disk, errors, output, tree, watch
from ldm_jax.build import objects as build
from ldm_jax.engine import checkpoint
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.weights import from_diffusers as diffusers_reader
from ldm_jax.weights import official, rules, taesd, to_diffusers

FIRST_STAGE = "first_stage"  # where a converted second stage keeps its first one
OPENERS = {
    "compvis": lambda checkpoint, config, **how: official.open_checkpoint(
        config, checkpoint, **how
    ),
    "diffusers": diffusers_reader.open_checkpoint,
    "taef2": taesd.open_checkpoint,
}


def convert(kind: str, checkpoint, out, overrides=None, **given) -> dict:
    """Writes the run of a foreign checkpoint into the folder `out`, whole or not at all.

    kind: one of OPENERS, which takes `given`; overrides: changes to the config, as text.
    """
    seconds = watch.stopwatch()
    with _new_folder(out) as folder, _understood(checkpoint):
        source = OPENERS[kind](checkpoint, **given)
        counts = write_run(source, folder, overrides or {})
        summary = {
            "converted": str(checkpoint),
            "sha256": _sha256(pathlib.Path(checkpoint)),
            "stage": source.stage,
            "step": source.step,
            **counts,
            "seconds": seconds(),
            "notes": source.notes,
        }
        disk.write_json(folder / "summary.json", summary)
    return summary


def export(run, out, ema: bool = True) -> dict:
    """Writes a run into the folder `out` as diffusers loads it, whole or not at all."""
    seconds = watch.stopwatch()
    with _new_folder(out) as folder:
        loads_as = write_diffusers(run, folder, ema)
        summary = {"exported": run, "loads_as": loads_as, "seconds": seconds()}
        disk.write_json(folder / "summary.json", summary)
    return summary


def write_run(source, folder, overrides) -> dict:
    """config.json, checkpoints and, of a second stage, latents.json and the first stage's run."""
    counts = {}
    changes = dict(source.config)
    if source.stage == "diffuse":
        changes["first_stage"] = source.first_stage
        if not isinstance(source.first_stage, str):
            changes["first_stage"] = FIRST_STAGE
            inner = write_run(source.first_stage, folder / FIRST_STAGE, {})
            counts["first_stage_parameters"] = inner["parameters"]
    config = make_config(source.stage, changes, overrides)
    disk.write_text(folder / "config.json", config_lib.to_json(config))

    for place, file in source.files.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(file, str):
            (folder / place).write_text(file, encoding="utf-8")
        elif isinstance(file, bytes):
            (folder / place).write_bytes(file)
        else:
            shutil.copyfile(file, folder / place)
    config = build.read_config(folder)
    shapes = abstract(config)
    trees = {
        kind: {
            player: rules.convert(*tables, expected=shapes[player])
            for player, tables in players.items()
        }
        for kind, players in (("params", source.tables), ("ema", source.ema))
    }
    save(folder, source.step, trees)
    if source.stage == "diffuse":
        first, step = build.codec_params(config.first_stage)
        digest = tree.digest(first) if first else build.IDENTITY
        origin = {"first_stage": changes["first_stage"], "step": step, "digest": digest}
        if frozen := build.make_diffuse(config).denoiser.read_frozen():
            origin["conditioners"] = tree.digest(frozen)
        record = {"scale": source.scale, "origin": origin}
        disk.write_text(folder / "latents.json", json.dumps(record, indent=2) + "\n")
    return {"parameters": tree.count(trees["params"])} | counts


def write_diffusers(run, folder, ema=True) -> str:
    """The run as diffusers' folder; returns the class that loads it."""
    config = build.read_config(run)
    player = {"autoencode": "autoencoder", "diffuse": "denoiser"}[config.stage]
    params = checkpoint.read_params(run, (player,), ema=ema)[0][player]
    if config.stage == "autoencode":
        return to_diffusers.write_first_stage(
            folder, dict(config.model), {"model": params["model"]}, size=config.data.size
        )
    codec = build.open_codec(config.first_stage)
    beneath, _ = build.codec_params(config.first_stage)
    first = None
    if codec.model:
        first = dict(build.read_config(config.first_stage).model), {"model": beneath}
    scale = disk.read_json(pathlib.Path(run) / "latents.json")["scale"]
    return to_diffusers.write_second_stage(
        folder, config.to_dict() | {"f": codec.f}, params, first, scale
    )


def make_config(stage: str, changes: dict, overrides: dict):
    """The defaults of a stage with these changes, resolved and locked."""
    keys = {"autoencode": defaults.first_stage, "diffuse": defaults.ldm}[stage]().to_dict()
    if "name" in changes.get("model", {}):  # another network, with keys of its own
        keys["model"] = {}
    config = ConfigDict(_merge(keys, changes)).lock()
    for key, text in overrides.items():
        config_lib.override(config, key, text)
    return config


def abstract(config) -> dict:
    """{player: parameters without memory} of a config."""
    key, size = jax.random.key(0), config.data.size
    if config.stage == "diffuse":
        return {"denoiser": jax.eval_shape(build.make_diffuse(config).init, key)}
    model = build.make_autoencoder(config)
    image = jnp.zeros((1, size, size, model.image_channels))
    init = lambda module: jax.eval_shape(module.init, key, image)["params"]
    own = {"model": init(model)}
    return {"autoencoder": own, "discriminator": init(PatchDiscriminator(**config.discriminator))}


def save(folder, step: int, trees: dict):
    """One checkpoint: weights without an optimizer's state, which training makes anew."""
    state = {"step": jnp.int32(step), "opt": {}, **jax.tree.map(jnp.asarray, trees)}
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints")
    try:
        checkpoints.save(step, state, {"pending": [], "seconds": 0.0})
        checkpoints.wait()
    finally:
        checkpoints.close()


@contextlib.contextmanager
def _new_folder(out):
    """A folder beside `out` that takes its place at the end, and vanishes if anything fails."""
    out = pathlib.Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise errors.UsageError(f"--out={out} exists already; give a new folder.")
    output.check_writable("--out", out.absolute().parent)
    part = out.absolute().with_name(f".{out.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        yield part
        if out.is_dir():
            out.rmdir()
        part.rename(out.absolute())
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def _understood(checkpoint):
    """A config that is not what it should be breaks its reader in many ways: all are one line."""
    try:
        yield
    except errors.UsageError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
        reason = " ".join(f"{type(e).__name__}: {e}".split())[:200]
        raise errors.UsageError(
            f"{checkpoint}: the config of this checkpoint cannot be understood ({reason})."
        ) from e


def _merge(old: dict, changes: dict) -> dict:
    """Nested; a number keeps the kind that the default has."""
    merged = dict(old)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            merged[key] = _merge(old[key], value)
        else:
            merged[key] = float(value) if isinstance(old.get(key), float) else value
    return merged


def _sha256(path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
