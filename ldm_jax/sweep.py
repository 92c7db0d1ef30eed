"""Trains, samples and judges every cell of a sweep, and reports (docs/ablation.md).

    python -m ldm_jax.sweep --sweep=configs/sweeps/downsampling.py:tiny --workdir=DIR [--dry_run]
    python -m ldm_jax.sweep ... --cell=f4_kl_c4_s0    # one cell alone: a job of a cluster's array
    python -m ldm_jax.sweep ... --report              # the report of the cells that are finished

A cell is its first stage, the latent cache, the denoiser, samples at several points of training and
with several step counts, and their evaluation: each the command that its name says, called with the
flags that are printed. What is done is not done again, so the same command goes on wherever it was
cut; cells share first stages and caches. --config.key=value changes the sweep's config.

DIR holds first_stages/, latents/, cells/ and the report: index.html, results.csv, summary.json.
"""

import contextlib
import json
import os
import pathlib
import shlex
import shutil

from absl import flags

from ldm_jax import cli
from ldm_jax.base import config as config_lib
from ldm_jax.base import disk, errors, platforms

CALIBRATION = 30  # steps that tell the speed, for budgets of seconds


def define(values):
    flags.DEFINE_string("sweep", None, "sweep's config: path.py[:preset]", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of this sweep", flag_values=values)
    flags.DEFINE_string("cell", "", "run this cell alone", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "print a launch command for each cell", flag_values=values)
    flags.DEFINE_bool("report", False, "only write the report", flag_values=values)


def main(args, overrides):
    cli.require(args, "sweep", "workdir")
    workdir = pathlib.Path(args.workdir)
    if not args.dry_run:
        cli.check_writable("--workdir", args.workdir)
    from ldm_jax.sweeps import cells

    sweep = config_lib.load(args.sweep, overrides)
    plan = {cell.name: cell for cell in cells.cells(sweep)}
    if args.cell and args.cell not in plan:
        hint = errors.nearest(args.cell, plan)
        raise errors.UsageError(f"--cell={args.cell} is none of {', '.join(plan)}{hint}")
    if args.dry_run:
        changes = [f"--config.{key}={text}" for key, text in overrides.items()]
        return dry_run(plan.values(), sweep, args, changes)
    works = {name: Work(cell, sweep, workdir) for name, cell in plan.items()}
    if not args.report:
        # One cache for all commands, which leave it alone where the environment names it.
        platforms.cache_compilations(workdir / "compilation_cache")
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(workdir / "compilation_cache"))
        for work in [works[args.cell]] if args.cell else works.values():
            work.run()
    if not args.cell:
        write_report(workdir, works.values())


def dry_run(plan, sweep, args, changes):
    """Prints what each cell is, and the command that runs it."""
    from ldm_jax.cost import budget

    print(f"# {'cell':20} {'parameters':>10} {'width':>5} {'FLOPs/step':>10} {'steps':>8}")
    for cell in plan:
        flops, steps = budget.training_flops(cell.ldm, cell.codec), "measured"
        if sweep.budget.kind != "seconds":
            steps = budget.steps(sweep.budget, flops)
        width = cell.ldm.model.width
        print(f"# {cell.name:20} {cell.parameters:10} {width:5} {flops:10.3g} {steps:>8}")
    for cell in plan:
        where = [f"--sweep={args.sweep}", f"--workdir={args.workdir}", f"--cell={cell.name}"]
        print(shlex.join(["python", "-m", "ldm_jax.sweep", *where, *changes]))


def write_report(workdir: pathlib.Path, works):
    """Of the cells of this sweep that are finished."""
    from ldm_jax.sweeps import page

    done = [read(work.folder) for work in works if work.finished()]
    if not done:
        raise errors.UsageError(f"--workdir={workdir} holds no finished cells: run the sweep.")
    summary = page.write(workdir, done) | {"cells": f"{len(done)} of {len(works)}"}
    cli.finish(workdir / "summary.json", summary, [f"report: {workdir / 'index.html'}"])


class Work:
    """The work of one cell, in the folders that it shares and its own."""

    def __init__(self, cell, sweep, workdir: pathlib.Path):
        from ldm_jax.sweeps import cells

        self.cell, self.sweep = cell, sweep
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
        train(config, run)
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
        cli.finish(self.folder / "summary.json", summary)

    def train_first_stage(self):
        train(self.cell.first_stage, self.first)
        evaluate(f"--run={self.first}", self.first, self.sweep.evaluate.first_stage)

    def first_stage_summary(self) -> dict:
        from ldm_jax.cost import budget

        trained, encoded = read(self.first), read(self.cache)
        flops = budget.training_flops(self.cell.first_stage)
        return {
            "name": self.first.name,
            "flops": flops * trained["steps"],
            "steps": trained["steps"],
            "train_seconds": trained["seconds"],
            "encode_seconds": encoded["seconds"],
            "cache_bytes": encoded["bytes"],
            "measures": evaluate(
                f"--run={self.first}", self.first, self.sweep.evaluate.first_stage
            ),
        }

    def encode(self):
        if not finished(self.cache):
            recipe = write_config(self.cell.ldm, self.cache / "data")
            settings = [f"--{key}={value}" for key, value in self.sweep.encode.items()]
            where = [f"--run={self.first}", f"--config={recipe}", f"--out={self.cache}"]
            call("encode", *where, *settings)

    def config(self):
        """(the denoiser's config with its steps, FLOPs of a step, measured seconds of one)."""
        from ldm_jax.cost import budget
        from ldm_jax.sweeps import cells

        config = cells.placed(self.cell.ldm, self.first, self.cache)
        flops, seconds = budget.training_flops(self.cell.ldm, self.cell.codec), None
        if self.sweep.budget.kind == "seconds":
            trial = cells.dated(config, CALIBRATION, 3)
            train(trial, self.folder / "calibration")
            timing = (self.folder / "calibration" / "timing.jsonl").read_text().splitlines()
            seconds = min(json.loads(line).get("seconds_per_step", 1e9) for line in timing)
        steps = budget.steps(self.sweep.budget, flops, seconds)
        return cells.dated(config, steps, self.sweep.points), flops, seconds

    def judge(self, config, run, step):
        """Samples and evaluates one point of training; a row for each step count."""
        from ldm_jax.sweeps import cells

        how = self.sweep.sampling
        last = step == config.steps.total
        point = run if last else freeze(run, step, self.folder / "points" / f"{step:08d}")
        settings = [f"--{key}={how[key]}" for key in ("num", "batch_size")]
        for steps in how.steps if last else (how.curve,):
            drawing = cells.digest({"num": how.num, "flags": how.flags})
            out = self.folder / f"samples-{drawing}" / f"{step:08d}_{steps:04d}"
            flags_ = [*settings, f"--steps={steps}", f"--seed={self.cell.seed}", *how.flags]
            if not finished(out):
                call("sample", f"--run={point}", f"--out={out}", *flags_)
            measures = evaluate(f"--samples={out}", out, self.sweep.evaluate.samples)
            drawn = read(out)
            yield {
                "step": step,
                "sampling_steps": steps,
                "num": how.num,
                "samples_png": drawn["samples_png"],
                "images_per_second": drawn.get("images_per_second"),
                "measures": measures,
            }


def train(config, workdir):
    """Trains `config` in `workdir` to its end, if that was not reached."""
    if not finished(workdir):
        recipe = workdir / config_lib.RUN_CONFIG
        call(
            "train",
            f"--config={recipe if recipe.exists() else write_config(config, workdir)}",
            f"--workdir={workdir}",
        )


def evaluate(what: str, folder, flags_) -> dict:
    """The numbers that `evaluate` with those flags says of a run or samples in `folder`."""
    from ldm_jax.sweeps import cells

    out = pathlib.Path(folder) / f"evaluation-{cells.digest({'flags': flags_})}"
    if not finished(out):
        call("evaluate", what, f"--out={out}", *flags_)
    return numbers(read(out))


def freeze(run, step: int, folder):
    """A run that holds one checkpoint of `run`, for commands that take the newest one."""
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(partial, ignore_errors=True)
        where = f"checkpoints/{step}"
        shutil.copytree(run / where, partial / where, copy_function=os.link)
        for name in (config_lib.RUN_CONFIG, "latents.json"):
            shutil.copy(run / name, partial / name)
        partial.rename(folder)
    return folder


def call(name: str, *argv: str):
    """One of our commands in this process; what it raises ends the sweep, with its exit code."""
    import importlib

    print("$", shlex.join(["python", "-m", f"ldm_jax.{name}", *argv]), flush=True)
    command = importlib.import_module(f"ldm_jax.{name}")
    values = flags.FlagValues()
    command.define(values)
    cli.parse(values, argv)
    command.main(values, {})


@contextlib.contextmanager
def locked(folder: pathlib.Path):
    """Only one process of a machine, or of a file system that knows locks, is inside."""
    import fcntl

    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def finished(folder) -> bool:
    return (pathlib.Path(folder) / "summary.json").is_file()


def read(folder) -> dict:
    return json.loads((pathlib.Path(folder) / "summary.json").read_text())


def write_config(config, folder) -> pathlib.Path:
    file = pathlib.Path(folder) / config_lib.RUN_CONFIG
    disk.write_text(file, config_lib.to_json(config))
    return file


def numbers(summary: dict) -> dict:
    """The measured values of an evaluation, without its protocol."""
    return {k: v for k, v in summary.items() if isinstance(v, (int, float)) and k != "num"}


if __name__ == "__main__":
    cli.start(__doc__, define, main)
