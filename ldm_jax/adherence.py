"""Draws under held-out conditions of scenes and measures how well they are obeyed.

    python -m ldm_jax.adherence --run=RUN --out=DIR [--num=256 --guidance=1,2,4 --steps=50 --seed=0]
        [--config.data.combinations=unseen]
    python -m ldm_jax.adherence --run=RUN --out=DIR --null    # under the null condition instead

The run has to be trained on the procedural scenes, whose checker reads from pixels alone what is
in a picture. --config.data.* changes the data that conditions come from, here to pairs of objects
that training never showed together. DIR holds grid.png (drawn, and beside it the record of each
condition) and summary.json, where `real_*` is what the records' own pictures score after the first
stage: no sample can be expected to do better. Several guidance scales are drawn one after the
other, from the same noise; the last one's scores are the summary's own, `by_guidance` has them all.
`marginal_distance` is how far the objects' classes are from being equally frequent, as in the data.
"""

import dataclasses
import pathlib

from absl import flags

from ldm_jax import cli
from ldm_jax.base import config as config_lib
from ldm_jax.base import errors, platforms, raster, watch

SHOWN = 32


def define(values):
    flags.DEFINE_string("run", None, "workdir of a second stage", flag_values=values)
    flags.DEFINE_string("out", None, "folder to write to", flag_values=values)
    flags.DEFINE_integer("num", 256, "how many pictures", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("batch_size", 64, "at a time", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "steps", None, "of the sampler; the run's own by default", flag_values=values
    )
    flags.DEFINE_list("guidance", [], "scales; the run's own by default", flag_values=values)
    flags.DEFINE_bool("null", False, "draw under the null condition", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the noise", lower_bound=0, flag_values=values)


def main(args, overrides):
    cli.require(args, "run", "out")
    cli.mirror(args)
    cli.check_writable("--out", args.out)
    import numpy as np

    from ldm_jax.build import objects as build
    from ldm_jax.data import transforms
    from ldm_jax.runs import opened as run_lib
    from ldm_jax.scenes import scores as scene_scores
    from ldm_jax.stages.sampling import Sampling

    seconds = watch.stopwatch()
    config = build.read_config(args.run)
    for key, text in overrides.items():
        if not key.startswith("data."):
            raise errors.UsageError(f"--config.{key}: only the data of the conditions may change.")
        config_lib.override(config, key, text)
    if config.stage != "diffuse" or config.data.source != "scenes":
        raise errors.UsageError(
            f"--run={args.run} is no second stage on scenes; only their pictures can be checked."
        )
    given = {"steps": args.steps} if args.steps else {}
    sampling = Sampling(**config.sample).over(given)
    scales = read_scales(args.guidance) or [sampling.guidance]
    build.sources.check_flags(config.data, overrides)
    source = build.open_source(config.data)
    held_out = build.sources.holdout(source, config.data.holdout, train=False)
    fields, records = build.make_conditions(config, source).of_source(held_out, args.num)
    scorers = [scene_scores.plain_scores]
    if not args.null:
        scorers += [scene_scores.SCORES[f] for f in fields if f in scene_scores.SCORES]

    platforms.cache_compilations(pathlib.Path(args.run) / "compilation_cache")
    run = run_lib.load(args.run)
    batches = [
        np.minimum(np.arange(begin, begin + args.batch_size), args.num - 1)
        for begin in range(0, args.num, args.batch_size)
    ]

    def draw(guidance):
        how = dataclasses.replace(sampling, guidance=guidance)
        for rows in batches:
            cond = None if args.null else {f: values[rows] for f, values in fields.items()}
            yield run.draw(len(rows), how, args.seed, cond, indices=rows)

    def reconstruct():
        for rows in batches:
            pixels = transforms.to_float(np.stack([records[i]["image"] for i in rows]))
            yield np.asarray(raster.to_uint8(run.decode(run.encode(pixels))))

    def score(pictures, prefix=""):
        found = {"marginal_distance": scene_scores.marginal_distance(pictures)}
        for scorer in scorers:
            found |= {k: float(np.mean(v)) for k, v in scorer(pictures, records).items()}
        return {f"{prefix}{name}": value for name, value in found.items()}

    whole = lambda parts: np.concatenate(list(parts))[: args.num]
    by_guidance = {}
    for guidance in scales:
        drawn = whole(draw(guidance))
        by_guidance[f"{guidance:g}"] = score(drawn)
    scores = by_guidance[f"{scales[-1]:g}"] | score(whole(reconstruct()), "real_")
    if len(scales) > 1:
        scores["by_guidance"] = by_guidance
    beside = np.stack([record["image"] for record in records])
    cells = np.stack([drawn, beside], axis=1)[:SHOWN].reshape(-1, *drawn.shape[1:])
    raster.write_png(pathlib.Path(args.out) / "grid.png", raster.grid(cells, 8))
    settings = dataclasses.asdict(sampling) | {"guidance": scales[-1], "null": args.null}
    settings |= {"seed": args.seed, "data": overrides}
    summary = {"run": str(args.run), "step": run.step, "num": args.num} | settings | scores
    lines = [
        f"guidance {scale}: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        for scale, found in scores.get("by_guidance", {}).items()
    ]
    summary["seconds"] = seconds()
    cli.finish(pathlib.Path(args.out) / "summary.json", summary, lines)


def read_scales(texts: list[str]) -> list[float]:
    """The scales of --guidance, in their order."""
    try:
        scales = [float(text) for text in texts]
    except ValueError as e:
        raise errors.UsageError(f"--guidance={','.join(texts)} must be numbers: 1,2,4.") from e
    if not all(0 <= scale < float("inf") for scale in scales):
        raise errors.UsageError(f"--guidance={','.join(texts)}: scales are 0 or more.")
    return scales


if __name__ == "__main__":
    cli.start(__doc__, define, main)
