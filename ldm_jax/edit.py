"""Edits pictures with a trained second stage, or draws series from it. Nothing is trained.

    python -m ldm_jax.edit inpaint     --run=RUN --out=DIR --images=DIR --masks=DIR
    python -m ldm_jax.edit vary        --run=RUN --out=DIR --images=DIR --strength=0.6
    python -m ldm_jax.edit upscale     --run=RUN --out=DIR --images=DIR
    python -m ldm_jax.edit interpolate --run=RUN --out=DIR --images=DIR | --seeds=1,2,3
    python -m ldm_jax.edit progress    --run=RUN --out=DIR --num=8
    python -m ldm_jax.edit reconstruct --run=RUN --out=DIR --images=DIR

inpaint paints anew what a mask has white, and leaves the rest as it is, to the pixel; a run that
was trained for inpainting gets image and mask as its conditions. vary keeps 1 - strength of a
picture. upscale wants a run that was trained for super-resolution. interpolate goes from each
picture, or seed, to the next and writes an animation too. progress shows x_t and the predicted x_0
along the way. Pictures are cropped to the middle and resized to --size, by default the run's own.
"""

import dataclasses
import itertools
import pathlib
import sys

from absl import flags

from ldm_jax import cli, sample
from ldm_jax.base import errors, platforms, raster, watch


def define(values):
    flags.DEFINE_string("run", None, "workdir of a run", flag_values=values)
    flags.DEFINE_string("out", None, "folder to write to", flag_values=values)
    flags.DEFINE_string("images", None, "a picture or a folder of them", flag_values=values)
    flags.DEFINE_string(
        "masks", None, "masks by the pictures' names, or one for all", flag_values=values
    )
    flags.DEFINE_float(
        "strength",
        0.6,
        "how much to draw anew: of vary, and of interpolate between pictures",
        lower_bound=0.0,
        upper_bound=1.0,
        flag_values=values,
    )
    flags.DEFINE_string("seeds", "", "interpolate: noise to go between", flag_values=values)
    flags.DEFINE_integer(
        "frames",
        8,
        "of interpolate between two, and of progress",
        lower_bound=2,
        flag_values=values,
    )
    flags.DEFINE_integer("num", 8, "progress: pictures", lower_bound=1, flag_values=values)
    flags.DEFINE_string(
        "labels", "", "class ids, over and over; none by default", flag_values=values
    )
    flags.DEFINE_string(
        "size", "", "HxW in pixels; the training size by default", flag_values=values
    )
    flags.DEFINE_integer("batch_size", 16, "pictures at a time", lower_bound=1, flag_values=values)
    sample.define_sampling(values)


def main(command, args, overrides):
    function = cli.command("edit", command, COMMANDS)
    if overrides:
        raise errors.UsageError("edit reads the run's own config; --config.* is for training.")
    cli.require(args, "run", "out")
    cli.mirror(args)
    cli.check_writable("--out", args.out)
    seconds = watch.stopwatch()
    summary = function(args)
    summary = {"edit": command, "run": args.run} | summary | {"seconds": seconds()}
    cli.finish(pathlib.Path(args.out) / "summary.json", summary)


def inpaint(args):
    """The hole from noise, under what surrounds it."""
    import numpy as np

    from ldm_jax.jobs import easel, pictures

    found, images, open_easel = _prepare(args)
    masks = pictures.read_masks(args.masks, found) if args.masks else cli.require(args, "masks")
    holes = np.stack([pictures.fit(mask, images.shape[1:3]) for mask in masks])
    painter = open_easel()
    if "masked_image" in painter.run.model.fields:
        black = np.where(holes[..., None], 0, images)
        mask = holes[..., None].astype(np.float32)
        drawn = painter.draw(len(images), {"masked_image": easel.floats(black), "mask": mask})
    else:
        init = painter.run.encode(easel.floats(_blank(images, holes)))
        mask = easel.holes_of_latents(holes, painter.run.model.codec.f)
        drawn = painter.draw(len(images), init=init, mask=mask)
    painted = np.where(holes[..., None], drawn, images)  # the official code forgets this
    names = [picture.name for picture in found]
    return easel.write(args.out, names, painted, beside=[images, _blank(images, holes)])


def vary(args):
    """Noised to `strength` of the way, and denoised again (SDEdit, Meng et al. 2021)."""
    from ldm_jax.jobs import easel

    found, images, open_easel = _prepare(args, args.strength)
    painter = open_easel()
    init = painter.run.encode(easel.floats(images))
    drawn = painter.draw(len(images), init=init)
    return easel.write(args.out, [p.name for p in found], drawn, beside=[images])


def upscale(args):
    """Pictures at the latents' resolution, or made so small, become the training size."""
    import numpy as np

    from ldm_jax.build import objects as build
    from ldm_jax.jobs import easel, pictures
    from ldm_jax.models.conditioners import label_of

    config = build.read_config(args.run)
    if not label_of(config.get("conditioners", {}), "low_res"):
        raise errors.UsageError(f"--run={args.run} was not trained for super-resolution (low_res).")
    found, images, open_easel = _prepare(args)
    f = build.open_codec(config.first_stage).f
    small = tuple(side // f for side in images.shape[1:3])
    images = np.stack([pictures.fit(picture.pixels, small) for picture in found])
    drawn = open_easel().draw(len(images), {"low_res": easel.floats(images)})
    large = images.repeat(f, 1).repeat(f, 2)
    return easel.write(args.out, [p.name for p in found], drawn, beside=[large])


def interpolate(args):
    """From each to the next: of pictures their latents, of seeds their noise, on the sphere."""
    import numpy as np

    from ldm_jax.diffusion import editing
    from ldm_jax.jobs import easel

    if bool(args.images) == bool(args.seeds):
        raise errors.UsageError("interpolate goes between --images or --seeds: give one of them.")
    along = np.linspace(0, 1, args.frames, dtype=np.float32)
    if args.images:
        found, images, open_easel = _prepare(args, args.strength)
        names = [picture.name for picture in found]
    else:
        names = _numbers("--seeds", args.seeds)
        open_easel = _easel(args)
    if len(names) < 2:
        raise errors.UsageError("interpolate needs two pictures, or seeds, at least.")
    painter = open_easel()
    if args.images:
        ends = np.asarray(painter.run.encode(easel.floats(images)))
        mix = lambda a, b: a + along.reshape(-1, 1, 1, 1) * (b - a)
    else:
        ends = np.concatenate([painter.run.noise(seed, [0], painter.size) for seed in names])
        mix = lambda a, b: editing.slerp(a.repeat(args.frames, 0), b.repeat(args.frames, 0), along)
    states = [np.asarray(mix(a[None], b[None])) for a, b in itertools.pairwise(ends)]
    states = np.concatenate([s[1 if i else 0 :] for i, s in enumerate(states)])
    # One noise and one class for all frames: they differ in where they are on the way alone.
    given = {"init" if args.images else "noise": states}
    drawn = painter.draw(len(states), same=True, **given)
    easel.animate(pathlib.Path(args.out) / "animation.gif", drawn)
    frames = [f"{i:04d}" for i in range(len(drawn))]
    return easel.write(args.out, frames, drawn, columns=args.frames) | {"between": names}


def progress(args):
    """A row of x_t and a row of predicted x_0 for every picture."""
    import numpy as np

    from ldm_jax.jobs import easel

    noisy, clean = _easel(args)().trace(args.num, args.frames)  # [frames, n, h, w, 3]
    summary = easel.write(args.out, [f"{i:04d}" for i in range(args.num)], clean[-1])
    rows = [series[:, i] for i in range(args.num) for series in (noisy, clean)]
    return summary | easel.sheet(args.out, np.concatenate(rows), args.frames)


def reconstruct(args):
    """Through the first stage and back."""
    import numpy as np

    from ldm_jax.jobs import easel
    from ldm_jax.runs import opened as run_lib

    found, images, _ = _prepare(args)
    run = run_lib.load(args.run, ema=args.ema)
    batches = [images[i : i + args.batch_size] for i in range(0, len(images), args.batch_size)]
    parts = [raster.to_uint8(run.decode(run.encode(easel.floats(batch)))) for batch in batches]
    drawn = np.concatenate([np.asarray(part) for part in parts])
    squared = np.mean((drawn.astype(np.float64) - images) ** 2, axis=(1, 2, 3))
    quality = {"psnr_db": float(np.mean(10 * np.log10(255**2 / np.maximum(squared, 1e-9))))}
    return easel.write(args.out, [p.name for p in found], drawn, beside=[images]) | quality


COMMANDS = dict(
    inpaint=inpaint,
    vary=vary,
    upscale=upscale,
    interpolate=interpolate,
    progress=progress,
    reconstruct=reconstruct,
)


def _prepare(args, strength=1.0):
    """(pictures, uint8 [n, h, w, 3] of them at their size, () -> the easel)."""
    import numpy as np

    from ldm_jax.build import objects as build
    from ldm_jax.jobs import pictures

    cli.require(args, "images")
    found = pictures.read("--images", args.images)
    size = sample.read_size(args.size, build.read_config(args.run))
    images = np.stack([pictures.fit(picture.pixels, size) for picture in found])
    return found, images, lambda: _easel(args, strength)()


def _easel(args, strength=1.0):
    """Checks the settings; the function that is returned opens the run."""
    from ldm_jax.build import objects as build
    from ldm_jax.jobs import conditions, easel
    from ldm_jax.models.conditioners import num_classes

    config = build.read_config(args.run)
    sampling, size = sample.read_sampling(args, config), sample.read_size(args.size, config)
    sampling = dataclasses.replace(sampling, strength=strength)
    labels = None
    if args.labels:
        classes = num_classes(config.conditioners)
        labels = conditions.read_labels(args.labels, classes, args.num, args.seed)

    def opened():
        from ldm_jax.runs import opened as run_lib

        platforms.cache_compilations(pathlib.Path(args.run) / "compilation_cache")
        run = run_lib.load(args.run, ema=args.ema, weaker=args.weaker)
        return easel.Easel(run, sampling, size, args.seed, labels, args.batch_size)

    return opened


def _blank(images, holes):
    """Mid-grey in the holes."""
    import numpy as np

    return np.where(holes[..., None], 128, images).astype(np.uint8)


def _numbers(flag, text):
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as e:
        raise errors.UsageError(f"{flag}={text} must be numbers such as 1,2,3.") from e


if __name__ == "__main__":
    sys.exit(cli.run_command(__doc__, define, main, sys.argv[1:]))
