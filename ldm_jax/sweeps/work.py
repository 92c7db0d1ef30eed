"""The work of a sweep: training, sampling and evaluating each cell, unless that is done."""

import pathlib
import shlex
from collections.abc import Iterator

from ldm_jax.base import config as config_lib
from ldm_jax.base import disk, errors, output, owner, remote
from ldm_jax.base import record as record_lib
from ldm_jax.cost import programs
from ldm_jax.evaluation import summaries
from ldm_jax.sweeps import axes as axes_lib
from ldm_jax.sweeps import cells, law, page

CALIBRATION = 30  # steps that are timed to plan a budget of seconds


def choose(sweep, name: str) -> list:
    """The cells of a sweep's config; with a name, only the cell of that name."""
    found = {cell.name: cell for cell in cells.cells(sweep)}
    if name and name not in found:
        hint = errors.nearest(name, found)
        raise errors.UsageError(f"--cell={name} is none of {', '.join(found)}{hint}")
    return [found[name]] if name else [*found.values()]


def check_flags(sweep, chosen, read):
    """Raises UsageError for what would fail only once the first cell is trained.

    Flags that a later command refuses, and cells that no figure ranks.
    read: function (name of a command, *its flags) -> (their values, overrides), such as cli.read.
    """
    with errors.of("config.sampling.flags"):
        read("sample", *sweep.sampling.flags)
    asked = {what: _evaluation(what, sweep.evaluate[what], read) for what in sweep.evaluate}
    if not asked["samples"].of_images and not all(_of_classes(cell.ldm) for cell in chosen):
        raise errors.UsageError(
            "config.evaluate.samples=(): no figure would rank the cells; give the flags of one: "
            "config.evaluate.samples=\"('--weights=FILE',)\"."
        )


def _evaluation(what: str, flags, read) -> summaries.Evaluation:
    """What the flags of config.evaluate.WHAT ask of images; wrong ones are a UsageError."""
    with errors.of(f"config.evaluate.{what}"):
        args, _ = read("evaluate", *flags)
        names = "features", "weights", "metrics"
        wanted = summaries.Evaluation(**{name: args[name].value for name in names})
        wanted.check()
    return wanted


def _of_classes(ldm) -> bool:
    """Whether samples are judged by their classes, without weights."""
    kinds = [own.name for own in ldm.conditioners.values()]
    return ldm.data.source == "scenes" and "class" in kinds


def describe(chosen, sweep, argv) -> Iterator[str]:
    """A line about each cell, then for each the command that runs it: `argv` with --cell.

    They come one by one, as counting the FLOPs of a variant takes seconds.
    """
    wide, costs = max([20, *(len(cell.name) for cell in chosen)]), {}
    yield f"# {'cell':{wide}} {'parameters':>10} {'width':>5} {'FLOPs/step':>10} {'steps':>8}"
    for cell in chosen:
        if cell.variant not in costs:  # a seed costs nothing
            costs[cell.variant] = programs.training_flops(cell.ldm, cell.codec)
        flops, width = costs[cell.variant], cell.ldm.model.get("width", "-")
        measured = sweep.budget.kind == "seconds"
        steps = "measured" if measured else cells.steps(sweep.budget, flops)
        yield f"# {cell.name:{wide}} {cell.parameters:10} {width:>5} {flops:10.3g} {steps:>8}"
    for cell in chosen:
        yield shlex.join([*argv, f"--cell={cell.name}"])


def write_report(workdir: pathlib.Path, works):
    """Writes the report of the cells that are finished."""
    done = done_of(workdir, works)
    axes = {axis.name: [*axis.values] for axis in axes_lib.of(works[0].sweep)}
    summary = page.write(workdir, done, axes) | {"cells": f"{len(done)} of {len(works)}"}
    report = remote.shown(workdir / "index.html")
    output.finish(workdir / "summary.json", summary, [f"report: {report}"])


def forecast(workdir: pathlib.Path, works, flops: float) -> list[str]:
    """What the finished cells promise for so many FLOPs of both stages, in lines."""
    done = done_of(workdir, works)
    return law.lines(done, page.ranking(workdir, done)[0], flops)


def done_of(workdir: pathlib.Path, works) -> list[dict]:
    """The summaries of the finished cells, at least one."""
    done = [read(work.folder) for work in works if work.finished()]
    if not done:
        raise errors.UsageError(f"--workdir={workdir} holds no finished cells: run the sweep.")
    return done


class Work:
    """The work of one cell, in its own folder and in those that it shares with other cells.

    call: function (name of a command, *its arguments) that runs the command, such as cli.call.
    """

    def __init__(self, cell, sweep, workdir: pathlib.Path, call):
        self.cell, self.sweep, self.call = cell, sweep, call
        self.workdir, self.folder = workdir, workdir / "cells" / cell.run_name(sweep)
        self.judgement = cells.digest(sweep.sampling, sweep.evaluate)

    def finished(self) -> bool:
        remote.fetch(self.folder, "summary.json")
        return finished(self.folder) and read(self.folder)["judgement"] == self.judgement

    def run(self):
        """Does what is not done yet, and writes summary.json into the cell's folder."""
        if self.finished():
            print(f"{self.cell.name} is done.", flush=True)
            return
        remote.fetch(self.folder)
        first = self.prepare() if self.cell.first_stage else None
        config, flops, seconds = self.config(first)
        run = self.folder / "run"
        trained = self.train(config, run)
        points = cells.judged(config, self.sweep.points, self.sweep.spacing)
        rows = [row for step in points for row in self.judge(config, run, step)]
        summary = {
            "cell": self.cell.name,
            "judgement": self.judgement,
            "labels": self.cell.labels,
            "seed": self.cell.seed,
            "parameters": self.cell.parameters,
            "f": self.cell.codec.f,
            "channels": self.cell.codec.channels,
            "size": config.data.size,
            "budget": dict(self.sweep.budget),
            "flops_per_step": flops,
            "seconds_per_step_calibrated": seconds,
            "steps": config.steps.total,
            "curve": self.sweep.sampling.curve,
            "batch_size": config.batch_size,
            "train_seconds": trained["seconds"],
            "train_images_per_second": trained.get("images_per_second"),
            "first_stage": first,
            "rows": rows,
        }
        output.finish(self.folder / "summary.json", summary)

    def prepare(self) -> dict:
        """Trains and evaluates the first stage and encodes the data; returns costs and measures."""
        cell = self.cell._replace(first_stage=self.long_enough())
        run, trained, measures = self.first_stage(cell)
        cache = self.workdir / "latents" / cell.cache_name
        with owner.lock(cache.parent, cache.name):
            remote.fetch(cache, "summary.json")
            recipe = cache / "data" / record_lib.CONFIG
            if not finished(cache):
                disk.write_text(recipe, config_lib.to_json(cell.ldm))
            settings = {"run": run, "config": recipe, "out": cache}
            encoded = self.once(cache, "encode", settings | self.sweep.encode.to_dict())
        return {
            "name": run.name,
            "cache": cache.name,
            "flops": programs.training_flops(cell.first_stage) * trained["steps"],
            "steps": trained["steps"],
            "train_seconds": trained["seconds"],
            "encode_seconds": encoded["seconds"],
            "cache_bytes": encoded["bytes"],
            "measures": measures,
        }

    def long_enough(self):
        """The config of the first stage with the steps after which it has stopped improving.

        Twice the steps are trained, from the start and with a schedule of that length, until they
        gain less than `plateau.gain_db` of held-out PSNR. All seeds take the steps that the first
        one of the sweep needs.
        """
        config, own = cells.unlocked(self.cell.first_stage), self.cell.first_stage.seed
        if self.sweep.seed_first_stages:
            config.seed = self.sweep.seeds[0]
        psnr = lambda: self.first_stage(self.cell._replace(first_stage=config))[-1]["psnr_db"]
        reached = psnr() if self.sweep.plateau.doublings else None
        for _ in range(self.sweep.plateau.doublings):
            shorter, config = config, cells.unlocked(config)
            config.steps.total *= 2
            if (longer := psnr()) - reached < self.sweep.plateau.gain_db:
                config = shorter
                break
            reached = longer
        config.seed = own
        return config

    def first_stage(self, cell) -> tuple[pathlib.Path, dict, dict]:
        """Trains and evaluates a first stage; returns its run, training's summary, measures."""
        run = self.workdir / "first_stages" / cell.first_stage_name
        with owner.lock(run.parent, run.name):
            remote.fetch(run)
            trained = self.train(cell.first_stage, run)
            return run, trained, self.evaluate({"run": run}, run, self.sweep.evaluate.first_stage)

    def config(self, first: dict | None):
        """(the denoiser's final config, FLOPs of a step, measured seconds of a step or None).

        first: what `prepare` returned; None for pixels.
        """
        config = cells.unlocked(self.cell.ldm)
        if first:
            config.first_stage = remote.shown(self.workdir / "first_stages" / first["name"])
            config.latents.cache = remote.shown(self.workdir / "latents" / first["cache"])
        flops, seconds = programs.training_flops(self.cell.ldm, self.cell.codec), None
        if self.sweep.budget.kind == "seconds":
            trial = cells.dated(config, CALIBRATION, 3)
            self.train(trial, self.folder / "calibration")
            timing = disk.read_jsonl(self.folder / "calibration" / "timing.jsonl")
            seconds = min(line.get("seconds_per_step", 1e9) for line in timing)
        steps = cells.steps(self.sweep.budget, flops, seconds)
        return cells.dated(config, steps, self.sweep.points, self.sweep.spacing), flops, seconds

    def judge(self, config, run, step):
        """Samples and evaluates one checkpoint; yields a row for each number of sampling steps."""
        how, last = self.sweep.sampling, step == config.steps.total
        point = run if last else freeze(run, step, self.folder / "points" / f"{step:08d}")
        drawing = cells.digest({"num": how.num, "flags": how.flags})
        for steps in how.steps if last else (how.curve,):
            out = self.folder / f"samples-{drawing}" / f"{step:08d}_{steps:04d}"
            settings = {"run": point, "out": out, "num": how.num, "batch_size": how.batch_size}
            settings |= {"steps": steps, "seed": self.cell.seed}
            drawn = self.once(out, "sample", settings, how.flags)
            measures = self.evaluate({"samples": out}, out, self.sweep.evaluate.samples)
            yield {
                "step": step,
                "sampling_steps": steps,
                "num": how.num,
                "samples_png": drawn["samples_png"],
                "images_per_second": drawn.get("images_per_second"),
                "measures": measures,
            }

    def train(self, config, workdir):
        """Trains `config` in `workdir` to its end, unless that is done; returns the summary."""
        recipe = workdir / record_lib.CONFIG
        if not recipe.exists():
            disk.write_text(recipe, config_lib.to_json(config))
        return self.once(workdir, "train", {"config": recipe, "workdir": workdir})

    def evaluate(self, what: dict, folder, flags) -> dict:
        """Evaluates the run or the samples in `folder`; returns the numbers alone."""
        out = folder / f"evaluation-{cells.digest({'flags': flags})}"
        found = self.once(out, "evaluate", what | {"out": out}, flags)
        return {k: v for k, v in found.items() if isinstance(v, (int, float)) and k != "num"}

    def once(self, folder, command: str, settings: dict, flags=()) -> dict:
        """Runs a command that writes `folder`, unless it is finished; returns its summary.

        settings: {flag: value}; flags: further flags as text.
        """
        if not finished(folder):
            self.call(command, *(f"--{key}={value}" for key, value in settings.items()), *flags)
        return read(folder)


def freeze(run, step: int, folder):
    """A copy of `run` with one checkpoint alone, for commands that always take the newest."""
    if not (folder / record_lib.CONFIG).exists():  # which comes last
        where = f"checkpoints/{step}"
        remote.duplicate(run / where, folder / where)
        for name in ("latents.json", record_lib.CONFIG):
            disk.write_text(folder / name, disk.read_text(run / name))
    return folder


def finished(folder: pathlib.Path) -> bool:
    return (folder / "summary.json").is_file()


def read(folder: pathlib.Path) -> dict:
    return disk.read_json(folder / "summary.json")
