"""Converts checkpoints of other projects into runs, and runs into diffusers' folders; `convert`."""

import contextlib
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ldm_jax.base import config as config_lib
from ldm_jax.base import disk, errors, output, remote, tensorfile, tree, watch
from ldm_jax.base import record as record_lib
from ldm_jax.engine import checkpoint, snapshots
from ldm_jax.runs import adapters as adapters_lib
from ldm_jax.runs import codecs, conditions, keys, kinds
from ldm_jax.runs import frozen as frozen_lib
from ldm_jax.weights import control as control_lib
from ldm_jax.weights import dit, official, rules, taesd, uvit
from ldm_jax.weights import from_diffusers as diffusers_reader
from ldm_jax.weights import lora as lora_lib

FIRST_STAGE = "first_stage"  # where a converted second stage keeps its first one
OPENERS = {
    "compvis": lambda checkpoint, config, **how: official.open_checkpoint(
        config, checkpoint, **how
    ),
    "diffusers": diffusers_reader.open_checkpoint,
    "dit": dit.open_checkpoint,
    "taef2": taesd.open_checkpoint,
    "uvit": uvit.open_checkpoint,
}
CONTROL = "control"  # the label of a converted control's conditioner
OF_ONE_FILE = ("compvis", "dit", "uvit")  # the others are folders


def convert(kind: str, checkpoint, out, overrides=None, **given) -> dict:
    """Converts a checkpoint of another project into a run in the folder `out`, whole or not at all.

    kind: a key of OPENERS or of OF_BASE, whose function gets `given`; checkpoint: a path or a
      public name (base/hub.py); overrides: changes to the run's config.
    """
    if kind in OF_BASE:
        return OF_BASE[kind](checkpoint, out=out, overrides=overrides or {}, **given)
    seconds = watch.stopwatch()
    here, given = remote.copy(checkpoint), {k: _copied(v) for k, v in given.items()}
    with new_folder(out) as folder, _understood(checkpoint):
        source = OPENERS[kind](here, **given)
        counts = write_run(source, folder, overrides or {})
        summary = {
            "converted": str(checkpoint),
            "sha256": tensorfile.digest(here) if kind in OF_ONE_FILE else None,
            "stage": source.stage,
            "step": source.step,
            **counts,
            "seconds": seconds(),
            "notes": source.notes,
        }
        disk.write_json(folder / "summary.json", summary)
    return summary


def export(run, out, ema: bool | float = True) -> dict:
    """Writes a run into the folder `out` as diffusers loads it; no folder is left on an error.

    ema: as of snapshots.read_params.
    """
    seconds = watch.stopwatch()
    snapshots.check(run, ema)
    with new_folder(out) as folder:
        record, config = record_lib.Record(run), keys.read(run)
        loads_as = kinds.of(config).export(record, config, folder, ema)
        summary = {"exported": run, "loads_as": loads_as, "ema": ema, "seconds": seconds()}
        disk.write_json(folder / "summary.json", summary)
    return summary


def merge(run, out, adapters: dict, ema: bool | float = True) -> dict:
    """Writes a run of whole weights into the folder `out`: a base's, with adapters in them.

    run: of an adapter; or of a base, with adapters {run: weight}.
    """
    seconds = watch.stopwatch()
    with new_folder(out) as folder:
        record, new = record_lib.Record(run), record_lib.Record(folder)
        config = keys.read(run)
        kinds.expect(config, "diffuse", f"--run={run}")
        adapters_lib.check_drawn(run, config, ema, others=adapters)
        if not config.adapt.name and not adapters:
            raise errors.UsageError(
                f"--run={run} is the run of no adapter: give some beside it, --adapters=RUN:0.7."
            )
        params, step = adapters_lib.weights(record, config, ema, adapters)
        latents = dict(record.latents)
        origin = latents.get("origin", {}).items()
        latents["origin"] = {name: said for name, said in origin if not name.startswith("base")}
        with config.unlocked():
            config.adapt.update(name="", base="")
            config.init_from, config.init_grow = "", False
        new.write_config(config)
        new.write(latents=latents)
        save(folder, step, {"params": {kinds.of(config).player: params}, "ema": {}})
        summary = {"merged": run, "adapters": adapters, "ema": ema, "seconds": seconds()}
        disk.write_json(folder / "summary.json", summary)
    return summary


def lora(checkpoint, run, out, overrides: dict, unet_only: bool = False) -> dict:
    """Writes the run of an adapter of `run` into the folder `out`, from a file of diffusers or of
    kohya's scripts; see weights/lora.py."""
    seconds, here = watch.stopwatch(), remote.copy(checkpoint)
    with new_folder(out) as folder, _understood(checkpoint):
        new, config = record_lib.Record(folder), keys.read(run)
        kinds.expect(config, "diffuse", f"--run={run}")
        adapters_lib.refuse(run, f"--run={run}")
        kind = kinds.of(config)
        kernels = tree.shapes(kind.shapes(config)[kind.player])
        updates, rank = lora_lib.padded(lora_lib.read(here, dict(config.model), unet_only))
        for path, (a, b) in updates.items():
            shape = (*a.shape[:-1], b.shape[-1])
            if kernels.get(path) != shape:
                raise errors.UsageError(
                    f"{checkpoint} updates {path} of shape {shape}, which in {run} is "
                    f"{kernels.get(path)}: it is of another network."
                )
        with config.unlocked():
            config.init_from, config.init_grow = "", False
            targets = lora_lib.targets(updates, [k for k in kernels if k.endswith("/kernel")])
            config.adapt.update(name="lora", base=str(run), rank=rank, alpha=0.0, targets=targets)
        for key, text in overrides.items():
            config_lib.override(config, key, text)
        own = adapters_lib.of(config).of_updates(updates)
        _write_adapter(new, config, run, own)
        summary = {
            "converted": str(checkpoint),
            "sha256": tensorfile.digest(here),
            "rank": rank,
            "kernels": len(updates),
            "seconds": seconds(),
        }
        disk.write_json(folder / "summary.json", summary)
    return summary


def control(checkpoint, run, out, overrides: dict) -> dict:
    """Writes the run of a control of `run` into the folder `out`, from a folder of diffusers; see
    weights/control.py."""
    seconds = watch.stopwatch()
    with new_folder(out) as folder, _understood(checkpoint):
        new, config = record_lib.Record(folder), keys.read(run)
        kinds.expect(config, "diffuse", f"--run={run}")
        adapters_lib.refuse(run, f"--run={run}")
        kind = kinds.of(config)
        whole = config.to_dict() | {"f": kind.codec(config).f}
        base, _ = adapters_lib.weights(record_lib.Record(run), config)
        kwargs, tables = control_lib.read(checkpoint, whole, base, CONTROL)
        with config.unlocked():
            config.init_from, config.init_grow = "", False
            config.adapt.update(name="control", base=str(run))
            config.conditioners[CONTROL] = kwargs | {"hint": "picture"}
            config.sample.conditioning_scale = 1.0
        for key, text in overrides.items():
            config_lib.override(config, key, text)
        conditions.make(config, fields=(conditions.HINT,))  # refuses a hint that is not known
        own = rules.convert(*tables, expected=kind.shapes(config)[kind.player])
        _write_adapter(new, config, run, own)
        summary = {"converted": str(checkpoint), "parameters": tree.count(own)}
        summary |= {"seconds": seconds()}
        disk.write_json(folder / "summary.json", summary)
    return summary


OF_BASE = {"lora": lora, "control": control}


def _write_adapter(record, config, run, own):
    """Writes the run of an adapter of `run` that holds the parameters `own`."""
    keys.check(config)
    kind = kinds.of(config)
    record.write_config(config)
    save(record.path, 0, {"params": {kind.player: own}, "ema": {}})
    _, origin = frozen_lib.read(kind.frozen(config), {}, str(run))
    record.write(latents=record_lib.Record(run).latents | {"origin": origin})


def write_run(source, folder, overrides) -> dict:
    """config.json, checkpoints and, of a second stage, latents.json and the first stage's run."""
    counts, changes, record = {}, dict(source.config), record_lib.Record(folder)
    if source.first_stage:
        changes["first_stage"] = source.first_stage
        if not isinstance(source.first_stage, str):
            changes["first_stage"] = FIRST_STAGE
            inner = write_run(source.first_stage, folder / FIRST_STAGE, {})
            counts["first_stage_parameters"] = inner["parameters"]
    config = make_config(source.stage, changes, overrides)
    alone = isinstance(source.first_stage, str)  # then its data.size is that of latents
    if alone and "first_stage" in overrides and "data.size" not in overrides:
        config.data.size *= codecs.open_codec(config.first_stage).f
    record.write_config(config)

    for place, file in source.files.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(file, str):
            (folder / place).write_text(file, encoding="utf-8")
        elif isinstance(file, bytes):
            (folder / place).write_bytes(file)
        else:
            shutil.copyfile(file, folder / place)
    config, kind = record.config, kinds.KINDS.get(source.stage)
    shapes = kind.shapes(config)
    trees = {
        name: {
            player: rules.convert(*tables, expected=shapes[player])
            for player, tables in players.items()
        }
        for name, players in (("params", source.tables), ("ema", source.ema))
    }
    save(folder, source.step, trees)
    kind.converted(record, config, source)
    return {"parameters": tree.count(trees["params"])} | counts


def make_config(stage: str, changes: dict, overrides: dict):
    """The default config of a stage with these changes, locked."""
    default = kinds.KINDS.get(stage).defaults().to_dict()
    if "name" in changes.get("model", {}):  # another network, with keys of its own
        default["model"] = {}
    config = ConfigDict(_merge(default, changes)).lock()
    for key, text in overrides.items():
        config_lib.override(config, key, text)
    keys.check(config)
    return config


def save(folder, step: int, trees: dict):
    """Saves one checkpoint of weights alone, without an optimizer's state."""
    state = {"step": jnp.int32(step), "opt": {}, **jax.tree.map(jnp.asarray, trees)}
    with contextlib.closing(checkpoint.Checkpoints(folder / "checkpoints")) as checkpoints:
        checkpoints.save(step, state, {"pending": [], "seconds": 0.0})
        checkpoints.wait()


@contextlib.contextmanager
def new_folder(out):
    """A temporary folder that is renamed to `out` at the end, or removed if anything fails."""
    if str(out).startswith(remote.SCHEME):
        with remote.new_folder(str(out)) as folder:
            yield folder
        return
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


def _copied(given):
    return remote.copy(given) if isinstance(given, str) else given


@contextlib.contextmanager
def _understood(checkpoint):
    """Turns the many exceptions that a wrong config of another project causes into a UsageError."""
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
    """Merges groups key by key; where the default is a float, the new value becomes one."""
    merged = dict(old)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            merged[key] = _merge(old[key], value)
        else:
            merged[key] = float(value) if isinstance(old.get(key), float) else value
    return merged
