"""How well pictures obey the conditions that they were drawn under; see `adherence`."""

import dataclasses
import pathlib

import numpy as np

from ldm_jax.base import config as config_lib
from ldm_jax.base import errors, owner, platforms, raster, watch
from ldm_jax.base import record as record_lib
from ldm_jax.data import transforms
from ldm_jax.evaluation import likeness
from ldm_jax.runs import conditions as conditions_of
from ldm_jax.runs import data as data_lib
from ldm_jax.runs import idle, keys, kinds, opened
from ldm_jax.scenes import scores
from ldm_jax.stages.sampling import Sampling

SHOWN = 32


@dataclasses.dataclass(frozen=True)
class Adherence:
    """What to draw and to score: the flags of `adherence`, which say what each field means."""

    run: str
    num: int = 256
    batch_size: int = 64
    steps: int | None = None
    guidance: tuple[float, ...] = ()
    conditioning_scale: float | None = None
    null: bool = False
    seed: int = 0


def measure(wanted: Adherence, overrides: dict[str, str], picture: pathlib.Path) -> dict:
    """The summary; writes to `picture` what was drawn, each beside the record of its condition.

    overrides: {"data.key": "text"}, changes to the data that the conditions come from.
    """
    seconds = watch.stopwatch()
    config = read_config(wanted.run, overrides)
    given = {key: getattr(wanted, key) for key in ("steps", "conditioning_scale")}
    given = {key: value for key, value in given.items() if value is not None}
    sampling = dataclasses.replace(Sampling(**config.sample), **given)
    conditions_of.check_scale(config, sampling.conditioning_scale)
    if wanted.null and conditions_of.controlled(config):
        raise errors.UsageError("--null: a control has no null: give --conditioning_scale=0.")
    scales = tuple(wanted.guidance) or (sampling.guidance,)
    source = data_lib.open_source(config.data)
    held_out = data_lib.held_out(config, source)
    fields, records = conditions_of.make(config, source).of_source(held_out, wanted.num)
    asked = {} if wanted.null else fields
    scorers = [likeness.SCORES[field] for field in asked if field in likeness.SCORES]
    if of_scenes := config.data.source == "scenes":
        checked = [scores.SCORES[field] for field in asked if field in scores.SCORES]
        scorers += [scores.plain_scores, *checked]
    if not scorers:
        raise errors.UsageError(
            f"--run={wanted.run} is not on scenes, and of other pictures only edges, enlargements "
            f"and holes are checked; it is asked for {', '.join(asked) or 'nothing'}."
        )

    def score(pictures) -> dict:
        """Means over the pictures."""
        found = {"marginal_distance": scores.marginal_distance(pictures)} if of_scenes else {}
        for scorer in scorers:
            found |= {k: float(np.mean(v)) for k, v in scorer(pictures, records).items()}
        return found

    platforms.cache_compilations(record_lib.Record(wanted.run).compiled)
    run = opened.load(wanted.run)

    def in_batches(make):
        """uint8 [num, h, w, 3]; the last record fills up the last batch."""
        begins = range(0, wanted.num, wanted.batch_size)
        rows = (np.arange(i, i + wanted.batch_size) for i in begins)
        made = [np.asarray(make(np.minimum(row, wanted.num - 1))) for row in rows]
        return np.concatenate(made)[: wanted.num]

    def draw(rows):
        cond = {field: values[rows] for field, values in asked.items()}
        return run.draw(len(rows), how, wanted.seed, cond, indices=rows)

    def reconstruct(rows):
        pixels = transforms.to_float(np.stack([records[i]["image"] for i in rows]))
        return raster.to_uint8(run.decode(run.encode(pixels)))

    with owner.of("--out", picture.parent):
        by_guidance = {}
        for scale in scales:
            how = dataclasses.replace(sampling, guidance=scale)
            drawn = in_batches(draw)
            by_guidance[f"{scale:g}"] = score(drawn)
        real = score(in_batches(reconstruct))
        found = by_guidance[f"{scales[-1]:g}"] | {f"real_{name}": x for name, x in real.items()}
        if len(scales) > 1:
            found["by_guidance"] = by_guidance
        beside = np.stack([record["image"] for record in records])
        cells = np.stack([drawn, beside], axis=1)[:SHOWN].reshape(-1, *drawn.shape[1:])
        raster.write_png(picture, raster.grid(cells, 8))
    settings = dataclasses.asdict(sampling) | {"guidance": scales[-1], "null": wanted.null}
    settings |= {"seed": wanted.seed, "data": overrides}
    about = {"run": str(wanted.run), "step": run.step, "num": wanted.num}
    return about | settings | found | {"seconds": seconds()}


def words(summary: dict) -> list[str]:
    """A line for every guidance scale, where there are several."""
    return [
        f"guidance {scale}: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        for scale, found in summary.get("by_guidance", {}).items()
    ]


def read_config(run, overrides: dict):
    """The config of a second stage, with changes to its data."""
    config = keys.read(run)
    for key, text in overrides.items():
        if not key.startswith("data."):
            raise errors.UsageError(f"--config.{key}: only the data of the conditions may change.")
        config_lib.override(config, key, text)
    keys.check(config)
    idle.refuse(config, overrides)
    kinds.expect(config, "diffuse", f"--run={run}")
    return config
