"""Draws images from a trained second stage.

    python -m ldm_jax.sample --run=runs/quickstart/ldm --out=samples --num=64 --guidance=2

Image i depends on (seed, i, weights, settings) alone, not on the batch size, the devices or the
workers, apart from float rounding, which these may change. The same command resumes an interrupted
job with the missing shards; a job with other settings needs another folder. Several machines that
share DIR can share one job: --worker=0/4 ... --worker=3/4, or without flags under jax.distributed.

DIR holds images/, a grid (a row per class), shards/ (a digest of every finished shard),
manifest.json and summary.json; with --format=npz also samples.npz (arr_0, arr_1). Settings of the
sampler that are not given are those of the run's config.
"""

import pathlib

from ldm_jax import cli

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
FLAGS = dict(
    run=cli.Text("Folder of a trained second stage."),
    out=cli.Text("Folder to write to."),
    num=cli.Integer("How many images to draw.", 64, least=1),
    batch_size=cli.Integer("Images drawn at a time, over all devices.", 32, 1, 2**16),
    **cli.SAMPLING,
    size=cli.Text("Height and width in pixels, HxW; the training size by default.", ""),
    labels=cli.Text(
        "Class ids taken in turn (3,5), a file of them, random or balanced.", "balanced"
    ),
    prompts=cli.Text("A caption, or a file with a caption on each line, taken in turn.", ""),
    held_out=cli.Switch("Draw under the conditions of the run's held-out records."),
    cond=cli.Text("File .npz with the other conditions: an array [n, ...] for each field.", ""),
    hints=cli.Text("A picture, or a folder of them, for a control to follow, taken in turn.", ""),
    format=cli.Text("Format of the images: png, webp, tar, arrayrecord, or npz (ADM's).", "png"),
    shard_size=cli.Integer(
        "Images of a shard; a killed job draws its last shard again.", 256, 1, 2**16
    ),
    worker=cli.Text("K/N draws every N-th shard from the K-th on, counted from 0.", ""),
    export=cli.Text("File to write the compiled sampler to, instead of drawing images.", ""),
    platforms=cli.Listed("Platforms that --export compiles for.", ("cpu",), of=PLATFORMS),
)


EXPORTING = ("run", "batch_size", "size", "export", "platforms")  # beside those of SAMPLING


def main(args, overrides):
    cli.refuse_overrides(overrides)
    cli.require(args, "run", *(() if args.export else ("out",)))
    cli.mirror(args)
    if file := pathlib.Path(args.export) if args.export else None:
        cli.refuse_idle(args, {*EXPORTING, *cli.drawing()} - {"seed"}, "--export")
        cli.check_writable("--export", file.parent)
    else:
        cli.refuse_idle(args, {*FLAGS, *cli.drawing()} - {"platforms"}, "no --export")
        cli.refuse_several(args, "labels", "prompts", "held_out")
        cli.check_out("--out", args.out, "manifest.json")
    from ldm_jax.jobs import drawing, export

    wanted = cli.fill(drawing.Drawing, args, sampling=cli.sampling(args))
    if file:
        summary = export.write(wanted, file, args.platforms)
        cli.finish(file.with_name(f"{file.name}.summary.json"), summary)
    elif summary := drawing.draw(wanted):
        cli.finish(pathlib.Path(args.out) / "summary.json", summary)


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
