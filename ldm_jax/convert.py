"""Turns other people's checkpoints into runs, and runs into folders that diffusers loads.

    python -m ldm_jax.convert compvis   --config=MODEL.yaml --checkpoint=MODEL.ckpt --out=RUN
    python -m ldm_jax.convert diffusers --checkpoint=FOLDER --out=RUN
    python -m ldm_jax.convert taef2     --checkpoint=FOLDER --out=RUN
    python -m ldm_jax.convert export    --run=RUN --out=FOLDER

compvis reads official checkpoints (.ckpt, .safetensors, .npz); diffusers a model's folder or a
pipeline's; taef2 the two files of a tiny autoencoder. A run that was converted is a run like any
other: train on it, sample from it, evaluate it. Nothing in a checkpoint is ever executed.
--config.key=value changes the config of the run that is written.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import sys

from absl import flags

from ldm_jax import cli
from ldm_jax.base import disk, errors, watch

FIRST_STAGE = "first_stage"  # where a converted second stage keeps its first one


def define(values):
    flags.DEFINE_string("config", None, "compvis: the model's official yaml", flag_values=values)
    flags.DEFINE_string("checkpoint", None, "the file or folder to read", flag_values=values)
    flags.DEFINE_string("run", None, "export: the run to read", flag_values=values)
    flags.DEFINE_string("out", None, "the folder to write", flag_values=values)
    flags.DEFINE_integer(
        "heads",
        0,
        "compvis: attention heads, where the yaml misleads about weights from before April 2022",
        flag_values=values,
    )
    flags.DEFINE_string(
        "tokenizer",
        "",
        "compvis: the folder of CLIP's vocab.json and merges.txt, where the checkpoint has CLIP's "
        "text encoder: the run then takes prompts",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "ema",
        True,
        "export: the moving average of the weights, where there is one",
        flag_values=values,
    )


def main(command, args, overrides):
    function = cli.command("convert", command, COMMANDS)
    cli.require(args, "out", *(("run",) if command == "export" else ("checkpoint",)))
    function(args, overrides)


def from_compvis(args, overrides):
    from ldm_jax.weights import official

    cli.require(args, "config")
    how = dict(heads=args.heads, tokenizer=args.tokenizer)
    opener = lambda: official.open_checkpoint(args.config, args.checkpoint, **how)
    convert(opener, args.checkpoint, args.out, overrides)


def from_diffusers(args, overrides):
    from ldm_jax.weights import from_diffusers as reader

    convert(lambda: reader.open_checkpoint(args.checkpoint), args.checkpoint, args.out, overrides)


def from_taef2(args, overrides):
    from ldm_jax.weights import taesd

    convert(lambda: taesd.open_checkpoint(args.checkpoint), args.checkpoint, args.out, overrides)


def export(args, overrides):
    seconds = watch.stopwatch()
    with _new_folder(args.out) as folder:
        loads_as = write_diffusers(args.run, folder, args.ema)
        summary = {"exported": args.run, "loads_as": loads_as, "seconds": seconds()}
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    cli.finish(pathlib.Path(args.out) / "summary.json", summary)


def convert(opener, checkpoint, out, overrides=None) -> dict:
    """Writes the run of `opener() -> weights.source.Source` into `out`, whole or not at all."""
    seconds = watch.stopwatch()
    with _new_folder(out) as folder, _understood(checkpoint):
        source = opener()
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
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    notes = [f"note: {note}" for note in source.notes]
    cli.finish(pathlib.Path(out) / "summary.json", summary, notes)
    return summary


def write_run(source, folder, overrides) -> dict:
    """config.json, checkpoints and, of a second stage, latents.json and the first stage's run."""
    from ldm_jax.base import config as config_lib
    from ldm_jax.base import tree
    from ldm_jax.build import objects as build
    from ldm_jax.weights import readers, rules

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
        if frozen := readers.read_conditioners(build.make_diffuse(config).denoiser):
            origin["conditioners"] = tree.digest(frozen)
        record = {"scale": source.scale, "origin": origin}
        disk.write_text(folder / "latents.json", json.dumps(record, indent=2) + "\n")
    return {"parameters": tree.count(trees["params"])} | counts


def write_diffusers(run, folder, ema=True) -> str:
    """The run as diffusers' folder; returns the class that loads it."""
    from ldm_jax.build import objects as build
    from ldm_jax.engine import checkpoint
    from ldm_jax.weights import to_diffusers

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
    """configs/base.py with these changes, resolved and locked."""
    from ml_collections import ConfigDict

    from ldm_jax.base import config as config_lib

    root = str(pathlib.Path(__file__).resolve().parent.parent)
    if root not in sys.path:
        sys.path.insert(0, root)
    from configs import base

    defaults = {"autoencode": base.first_stage, "diffuse": base.ldm}[stage]().to_dict()
    if "name" in changes.get("model", {}):  # another network, with keys of its own
        defaults["model"] = {}
    config = ConfigDict(_merge(defaults, changes)).lock()
    for key, text in overrides.items():
        config_lib.override(config, key, text)
    return config


def abstract(config) -> dict:
    """{player: parameters without memory} of a config."""
    import jax
    import jax.numpy as jnp

    from ldm_jax.build import objects as build
    from ldm_jax.models.discriminator import PatchDiscriminator

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
    import jax
    import jax.numpy as jnp

    from ldm_jax.engine.checkpoint import Checkpoints

    state = {"step": jnp.int32(step), "opt": {}, **jax.tree.map(jnp.asarray, trees)}
    checkpoints = Checkpoints(folder / "checkpoints")
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
    cli.check_writable("--out", out.absolute().parent)
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


COMMANDS = dict(compvis=from_compvis, diffusers=from_diffusers, taef2=from_taef2, export=export)


def run(argv) -> int:
    """The command with these arguments; returns the exit code."""
    return cli.run_command(__doc__, define, main, argv)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
