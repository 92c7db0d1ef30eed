"""Draws images from a trained second stage.

    python -m ldm_jax.sample --run=RUN --out=DIR --num=64 [--steps=50 --guidance=2 --labels=3,5 ...]

Writes DIR/images/000000.png ..., a grid (a row per class), manifest.json and summary.json. Image i
depends only on (seed, i, weights, settings); a job that was cut goes on with what is missing.
"""

import json
import pathlib

from absl import flags

from ldm_jax import cli
from ldm_jax.base import errors

GRID_COLUMNS = 8
GRID_ROWS = 16


def define(values):
    flags.DEFINE_string("run", None, "workdir of a second stage", flag_values=values)
    flags.DEFINE_string("out", None, "folder to write to", flag_values=values)
    flags.DEFINE_integer("num", 64, "how many images", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "batch_size", 32, "images at a time, over all devices", lower_bound=1, flag_values=values
    )
    flags.DEFINE_string("sampler", "", "ddim, ddpm; the run's own by default", flag_values=values)
    flags.DEFINE_integer(
        "steps", 0, "network calls per image; 0: the run's own", flag_values=values
    )
    flags.DEFINE_float("eta", -1.0, "stochasticity of ddim; -1: the run's own", flag_values=values)
    flags.DEFINE_float(
        "guidance", -1.0, "classifier-free scale, 1 for none; -1: the run's own", flag_values=values
    )
    flags.DEFINE_string(
        "spacing", "", "time grid: exact, legacy, trailing, linspace", flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "of the noise", flag_values=values)
    flags.DEFINE_string(
        "size", "", "HxW in pixels; the training size by default", flag_values=values
    )
    flags.DEFINE_string(
        "labels", "balanced", "balanced, or class ids that are repeated: 3,5", flag_values=values
    )
    flags.DEFINE_enum(
        "format", "png", ["png", "npz"], "files, or also one samples.npz", flag_values=values
    )
    flags.DEFINE_bool("ema", True, "use the averaged weights", flag_values=values)


def main(args, overrides):
    if overrides:
        raise errors.UsageError("sample reads the run's own config; --config.* is for training.")
    cli.require(args, "run", "out")
    import numpy as np

    from ldm_jax import build
    from ldm_jax import run as run_lib
    from ldm_jax.base import shard
    from ldm_jax.engine import log

    seconds = cli.stopwatch()
    config = build.read_config(args.run)
    settings = read_settings(args, config)
    labels = read_labels(args.labels, args.num, config)
    out = pathlib.Path(args.out)

    cli.cache_compilations(pathlib.Path(args.run) / "compilation_cache")
    mesh = shard.make_mesh()
    shard.check_batch(args.batch_size, mesh, key="--batch_size")
    run = run_lib.load(args.run, ema=args.ema, mesh=mesh)
    manifest = settings | {
        "run": str(args.run),
        "step": run.step,
        "weights": run.digest,
        "labels": args.labels if labels is not None else None,
    }
    claim(out, manifest)

    progress = log.Progress(0, args.num)
    drawing = 0.0
    files = [out / "images" / f"{i:06d}.png" for i in range(args.num)]
    for begin in range(0, args.num, args.batch_size):
        wanted = range(begin, min(begin + args.batch_size, args.num))
        if all(files[i].exists() for i in wanted):
            continue
        timer = cli.stopwatch()
        images = draw(run, settings, begin, args.batch_size, labels)
        drawing += timer()
        for i in wanted:
            log.write_png(files[i], images[i - begin])
        progress.update(wanted[-1] + 1)
    progress.close()

    write_grid(out / "grid.png", files, labels)
    if args.format == "npz":
        from PIL import Image

        pixels = np.stack([np.asarray(Image.open(file)) for file in files])
        arrays = {"arr_0": pixels} | ({} if labels is None else {"arr_1": labels})
        log.write_atomic(out / "samples.npz", lambda f: np.savez(f, **arrays))
    if labels is not None:
        log.write_text(out / "labels.json", json.dumps([int(label) for label in labels]) + "\n")
    summary = {
        "num": args.num,
        "seconds": seconds(),
        **settings,
        "samples_png": str(out / "grid.png"),
    }
    if drawing:
        summary["images_per_second"] = args.num / drawing
    cli.finish(out / "summary.json", summary)


def read_settings(args, config) -> dict:
    """The sampling settings: the flags that were given over the run's own."""
    if config.stage != "diffuse":
        raise errors.UsageError(
            f"--run={args.run} is a first stage; sampling needs a second stage."
        )
    from ldm_jax.diffusion.process import make_process
    from ldm_jax.stages import diffuse

    own = config.sample
    sampling = diffuse.Sampling(
        sampler=args.sampler or own.sampler,
        steps=args.steps or own.steps,
        eta=own.eta if args.eta < 0 else args.eta,
        guidance=own.guidance if args.guidance < 0 else args.guidance,
        spacing=args.spacing or own.spacing,
    )
    sampling.grid(make_process(**config.process))
    return {
        **{k: getattr(sampling, k) for k in ("sampler", "steps", "eta", "guidance", "spacing")},
        "seed": args.seed,
        "size": read_size(args.size, config),
    }


def read_size(text: str, config) -> list[int]:
    """ "64x96" -> [64, 96]; every side must suit the first stage and the UNet."""
    from ldm_jax import build

    if not text:
        return [config.data.size] * 2
    try:
        sides = [int(side) for side in text.lower().split("x")]
        height, width = sides if len(sides) == 2 else sides * 2
    except ValueError as e:
        raise errors.UsageError(f"--size={text} must read HxW in pixels, e.g. 64x96.") from e
    factor = build.open_codec(config.first_stage).f * 2 ** (len(config.model.mult) - 1)
    if height < 1 or width < 1 or height % factor or width % factor:
        raise errors.UsageError(
            f"--size={text}: both sides must be positive multiples of {factor}."
        )
    return [height, width]


def read_labels(text: str, num: int, config):
    """Class ids [num]: balanced (i modulo their number), or the given ids over and over."""
    import numpy as np

    classes = config.conditioners.get("class", {}).get("num_classes", 0)
    if not classes:
        if text != "balanced":
            raise errors.UsageError(f"--labels={text}: this run is not conditioned on classes.")
        return None
    try:
        ids = range(classes) if text == "balanced" else [int(label) for label in text.split(",")]
    except ValueError as e:
        raise errors.UsageError(
            f"--labels={text} must be class ids such as 3,5, or balanced."
        ) from e
    wrong = [label for label in ids if not 0 <= label < classes]
    if wrong:
        raise errors.UsageError(
            f"--labels={text}: {wrong[0]} is not a class id in 0..{classes - 1}."
        )
    return np.resize(np.asarray(ids, np.int32), num)


def claim(out: pathlib.Path, manifest: dict):
    """Writes manifest.json; refuses a folder that holds samples of other settings or weights."""
    from ldm_jax.base import config as config_lib
    from ldm_jax.engine import log

    file = out / "manifest.json"
    if file.exists() and (old := json.loads(file.read_text())) != manifest:
        changed = "; ".join(config_lib.difference(old, manifest))
        raise errors.UsageError(f"{out} holds other samples ({changed}); take another --out.")
    log.write_text(file, json.dumps(manifest, indent=2) + "\n")


def draw(run, settings: dict, begin: int, count: int, labels):
    """uint8 [count, h, w, 3]: images begin .. begin + count - 1."""
    import numpy as np

    from ldm_jax.engine import log

    cond = None
    if labels is not None:  # the last batch repeats labels; its surplus images are not written
        cond = {"class": np.resize(labels[begin : begin + count], count)}
    settings = settings | {"size": tuple(settings["size"])}
    return log.to_uint8(run.sample(count, cond=cond, first=begin, **settings))


def write_grid(path, files, labels):
    """The first images as one picture, a row per class where there are classes."""
    import numpy as np
    from PIL import Image

    from ldm_jax.engine import log

    order = range(len(files))
    if labels is not None:
        rows = [np.flatnonzero(labels == label)[:GRID_COLUMNS] for label in np.unique(labels)]
        order = np.concatenate(rows[:GRID_ROWS])
        columns = max(map(len, rows))
    else:
        columns = GRID_COLUMNS
    chosen = [np.asarray(Image.open(files[i])) for i in order[: GRID_COLUMNS * GRID_ROWS]]
    log.write_png(path, log.grid(np.stack(chosen), columns))


if __name__ == "__main__":
    cli.start(__doc__, define, main)
