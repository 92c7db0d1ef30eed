"""Draws under held-out conditions of scenes and measures how well they are obeyed.

    python -m ldm_jax.adherence --run=RUN --out=DIR [--num=256 --guidance=4 --steps=50 --seed=0]
        [--config.data.combinations=unseen]

The run has to be trained on the procedural scenes, whose checker reads from pixels alone what is
in a picture. --config.data.* changes the data that conditions come from, here to pairs of objects
that training never showed together. DIR holds grid.png (drawn, and beside it the record of each
condition) and summary.json, where `real_*` is what the records' own pictures score after the first
stage: no sample can be expected to do better.
"""

import dataclasses
import pathlib

from absl import flags

from ldm_jax import cli
from ldm_jax.base import config as config_lib
from ldm_jax.base import errors

SHOWN = 32


def define(values):
    flags.DEFINE_string("run", None, "workdir of a second stage", flag_values=values)
    flags.DEFINE_string("out", None, "folder to write to", flag_values=values)
    flags.DEFINE_integer("num", 256, "how many pictures", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("batch_size", 64, "at a time", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "steps", None, "of the sampler; the run's own by default", flag_values=values
    )
    flags.DEFINE_float("guidance", None, "scale; the run's own by default", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the noise", lower_bound=0, flag_values=values)


def main(args, overrides):
    cli.require(args, "run", "out")
    cli.check_writable("--out", args.out)
    import numpy as np

    from ldm_jax import build
    from ldm_jax import run as run_lib
    from ldm_jax.data import scene_scores, transforms
    from ldm_jax.engine import log
    from ldm_jax.stages.sampling import Sampling

    seconds = cli.stopwatch()
    config = build.read_config(args.run)
    for key, text in overrides.items():
        if not key.startswith("data."):
            raise errors.UsageError(f"--config.{key}: only the data of the conditions may change.")
        config_lib.override(config, key, text)
    if config.stage != "diffuse" or config.data.source != "scenes":
        raise errors.UsageError(
            f"--run={args.run} is no second stage on scenes; only their pictures can be checked."
        )
    given = {k: v for k in ("steps", "guidance") if (v := getattr(args, k)) is not None}
    sampling = dataclasses.replace(Sampling(**config.sample), **given)
    source = build.open_source(config.data)
    held_out = build.sources.holdout(source, config.data.holdout, train=False)
    fields, records = build.make_conditions(config, source).of_source(held_out, args.num)
    scorers = [scene_scores.plain_scores]
    scorers += [scene_scores.SCORES[field] for field in fields if field in scene_scores.SCORES]

    cli.cache_compilations(pathlib.Path(args.run) / "compilation_cache")
    run = run_lib.load(args.run)
    drawn, real = [], []
    for begin in range(0, args.num, args.batch_size):
        rows = np.minimum(np.arange(begin, begin + args.batch_size), args.num - 1)
        cond = {field: values[rows] for field, values in fields.items()}
        drawn.append(run.draw(len(rows), sampling, args.seed, cond, indices=rows))
        pixels = transforms.to_float(np.stack([records[i]["image"] for i in rows]))
        real.append(np.asarray(log.to_uint8(run.decode(run.encode(pixels)))))
    drawn, real = (np.concatenate(parts)[: args.num] for parts in (drawn, real))
    scores = {}
    for scorer in scorers:
        for prefix, pictures in (("", drawn), ("real_", real)):
            found = scorer(pictures, records)
            scores |= {f"{prefix}{name}": float(np.mean(v)) for name, v in found.items()}
    beside = np.stack([record["image"] for record in records])
    cells = np.stack([drawn, beside], axis=1)[:SHOWN].reshape(-1, *drawn.shape[1:])
    log.write_png(pathlib.Path(args.out) / "grid.png", log.grid(cells, 8))
    settings = dataclasses.asdict(sampling) | {"seed": args.seed, "data": overrides}
    summary = {"run": str(args.run), "step": run.step, "num": args.num} | settings | scores
    cli.finish(pathlib.Path(args.out) / "summary.json", summary | {"seconds": seconds()})


if __name__ == "__main__":
    cli.start(__doc__, define, main)
