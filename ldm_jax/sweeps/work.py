"""The work of a sweep: what is not done yet of training, sampling and judging each cell."""

import contextlib
import fcntl
import json
import os
import pathlib
import shlex
import shutil

from ldm_jax.base import config as config_lib
from ldm_jax.base import disk, errors, output
from ldm_jax.base import record as record_lib
from ldm_jax.cost import budget
from ldm_jax.sweeps import cells, page

CALIBRATION = 30  # steps that tell the speed, for budgets of seconds


def choose(sweep, name: str) -> list:
    """The cells of a sweep's config; the one of that name alone where it is not empty."""
    found = {cell.name: cell for cell in cells.cells(sweep)}
    if name and name not in found:
        hint = errors.nearest(name, found)
        raise errors.UsageError(f"--cell={name} is none of {', '.join(found)}{hint}")
    return [found[name]] if name else [*found.values()]


def describe(chosen, sweep, argv) -> list[str]:
    """A line that says what each cell is, then the commands that run them, `argv` with --cell."""
    lines = [f"# {'cell':20} {'parameters':>10} {'width':>5} {'FLOPs/step':>10} {'steps':>8}"]
    for cell in chosen:
        flops, steps = budget.training_flops(cell.ldm, cell.codec), "measured"
        if sweep.budget.kind != "seconds":
            steps = budget.steps(sweep.budget, flops)
        width = cell.ldm.model.width
        lines.append(f"# {cell.name:20} {cell.parameters:10} {width:5} {flops:10.3g} {steps:>8}")
    return lines + [shlex.join([*argv, f"--cell={cell.name}"]) for cell in chosen]


def write_report(workdir: pathlib.Path, works):
    """Of the cells that are finished."""
    done = [read(work.folder) for work in works if work.finished()]
    if not done:
        raise errors.UsageError(f"--workdir={workdir} holds no finished cells: run the sweep.")
    summary = page.write(workdir, done) | {"cells": f"{len(done)} of {len(works)}"}
    output.finish(workdir / "summary.json", summary, [f"report: {workdir / 'index.html'}"])


class Work:
    """The work of one cell, in the folders that it shares and its own.

    call: (name of a command, *its arguments), which runs it, as cli.call does.
    """

    def __init__(self, cell, sweep, workdir: pathlib.Path, call):
        self.cell, self.sweep, self.call = cell, sweep, call
        self.folder = workdir / "cells" / cell.run_name(sweep)
        shared = cell.first_stage is not None
        self.first = workdir / "first_stages" / cell.first_stage_name if shared else None
        self.cache = workdir / "latents" / cell.cache_name if shared else None
        self.judgement = cells.digest(sweep.sampling, sweep.evaluate)

    def finished(self) -> bool:
        return finished(self.folder) and read(self.folder)["judgement"] == self.judgement

    def run(self):
        """Does what is missing; summary.json in the cell's folder says all that was measured."""
        if self.finished():
            print(f"{self.cell.name} is done.", flush=True)
            return
        if self.first:
            with locked(self.first):
                self.train_first_stage()
            with locked(self.cache):
                self.encode()
        config, flops, seconds = self.config()
        run = self.folder / "run"
        self.train(config, run)
        rows = [
            row
            for step in range(config.checkpoints.keep_every, config.steps.total + 1)
            if step % config.checkpoints.keep_every == 0
            for row in self.judge(config, run, step)
        ]
        summary = {
            "cell": self.cell.name,
            "judgement": self.judgement,
            **{key: getattr(self.cell, key) for key in ("f", "bottleneck", "seed", "parameters")},
            "channels": self.cell.codec.channels,
            "size": config.data.size,
            "budget": dict(self.sweep.budget),
            "flops_per_step": flops,
            "seconds_per_step_calibrated": seconds,
            "steps": config.steps.total,
            "curve": self.sweep.sampling.curve,
            "batch_size": config.batch_size,
            "train_seconds": read(run)["seconds"],
            "train_images_per_second": read(run).get("images_per_second"),
            "first_stage": self.first_stage_summary() if self.first else None,
            "rows": rows,
        }
        output.finish(self.folder / "summary.json", summary)

    def train_first_stage(self):
        self.train(self.cell.first_stage, self.first)
        self.evaluate_first_stage()

    def evaluate_first_stage(self) -> dict:
        flags = self.sweep.evaluate.first_stage
        return self.evaluate(f"--run={self.first}", self.first, flags)

    def first_stage_summary(self) -> dict:
        trained, encoded = read(self.first), read(self.cache)
        flops = budget.training_flops(self.cell.first_stage)
        return {
            "name": self.first.name,
            "flops": flops * trained["steps"],
            "steps": trained["steps"],
            "train_seconds": trained["seconds"],
            "encode_seconds": encoded["seconds"],
            "cache_bytes": encoded["bytes"],
            "measures": self.evaluate_first_stage(),
        }

    def encode(self):
        if not finished(self.cache):
            recipe = write_config(self.cell.ldm, self.cache / "data")
            settings = [f"--{key}={value}" for key, value in self.sweep.encode.items()]
            where = [f"--run={self.first}", f"--config={recipe}", f"--out={self.cache}"]
            self.call("encode", *where, *settings)

    def config(self):
        """(the denoiser's config with its steps, FLOPs of a step, measured seconds of one)."""
        config = cells.placed(self.cell.ldm, self.first, self.cache)
        flops, seconds = budget.training_flops(self.cell.ldm, self.cell.codec), None
        if self.sweep.budget.kind == "seconds":
            trial = cells.dated(config, CALIBRATION, 3)
            self.train(trial, self.folder / "calibration")
            timing = (self.folder / "calibration" / "timing.jsonl").read_text().splitlines()
            seconds = min(json.loads(line).get("seconds_per_step", 1e9) for line in timing)
        steps = budget.steps(self.sweep.budget, flops, seconds)
        return cells.dated(config, steps, self.sweep.points), flops, seconds

    def judge(self, config, run, step):
        """Samples and evaluates one point of training; a row for each step count."""
        how = self.sweep.sampling
        last = step == config.steps.total
        point = run if last else freeze(run, step, self.folder / "points" / f"{step:08d}")
        settings = [f"--{key}={how[key]}" for key in ("num", "batch_size")]
        for steps in how.steps if last else (how.curve,):
            drawing = cells.digest({"num": how.num, "flags": how.flags})
            out = self.folder / f"samples-{drawing}" / f"{step:08d}_{steps:04d}"
            flags_ = [*settings, f"--steps={steps}", f"--seed={self.cell.seed}", *how.flags]
            if not finished(out):
                self.call("sample", f"--run={point}", f"--out={out}", *flags_)
            measures = self.evaluate(f"--samples={out}", out, self.sweep.evaluate.samples)
            drawn = read(out)
            yield {
                "step": step,
                "sampling_steps": steps,
                "num": how.num,
                "samples_png": drawn["samples_png"],
                "images_per_second": drawn.get("images_per_second"),
                "measures": measures,
            }

    def train(self, config, workdir):
        """Trains `config` in `workdir` to its end, where that was not reached."""
        if not finished(workdir):
            recipe = workdir / record_lib.CONFIG
            recipe = recipe if recipe.exists() else write_config(config, workdir)
            self.call("train", f"--config={recipe}", f"--workdir={workdir}")

    def evaluate(self, what: str, folder, flags) -> dict:
        """The numbers that `evaluate` with those flags says of a run or samples in `folder`."""
        out = pathlib.Path(folder) / f"evaluation-{cells.digest({'flags': flags})}"
        if not finished(out):
            self.call("evaluate", what, f"--out={out}", *flags)
        return numbers(read(out))


def freeze(run, step: int, folder):
    """A run that holds one checkpoint of `run`, for commands that take the newest one."""
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(partial, ignore_errors=True)
        where = f"checkpoints/{step}"
        shutil.copytree(run / where, partial / where, copy_function=os.link)
        for name in (record_lib.CONFIG, "latents.json"):
            shutil.copy(run / name, partial / name)
        partial.rename(folder)
    return folder


@contextlib.contextmanager
def locked(folder: pathlib.Path):
    """Only one process of a machine, or of a file system that knows locks, is inside."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def finished(folder) -> bool:
    return (pathlib.Path(folder) / "summary.json").is_file()


def read(folder) -> dict:
    return json.loads((pathlib.Path(folder) / "summary.json").read_text())


def write_config(config, folder) -> pathlib.Path:
    file = pathlib.Path(folder) / record_lib.CONFIG
    disk.write_text(file, config_lib.to_json(config))
    return file


def numbers(summary: dict) -> dict:
    """The measured values of an evaluation, without its protocol."""
    return {k: v for k, v in summary.items() if isinstance(v, (int, float)) and k != "num"}
