"""Trains, samples and evaluates the cells of a sweep, and reports.

    python -m ldm_jax.sweep --sweep=sweeps/downsampling:tiny --workdir=runs/downsampling --dry_run
    python -m ldm_jax.sweep ... --cell=f4_kl_c4_s0    # one cell alone: a job of a cluster's array
    python -m ldm_jax.sweep ... --forecast=1e18       # which variant to train for so many FLOPs
    python -m ldm_jax.sweep ... --config.axes="ldm.process.prediction=v,eps; ..."  # what varies

A cell is a first stage, a latent cache, a denoiser, samples at several points of training and with
several step counts, and their evaluation. Cells differ in f, in the seed, or in any other keys of
their configs, and share first stages and caches. Each part is made by one of the other commands.
Finished parts are not made again, so the same command resumes an interrupted sweep.
--config.key=value changes the sweep's config (docs/ablation.md). The workdir holds first_stages/,
latents/, cells/ and the report: index.html, results.csv, cells.json, summary.json.
"""

import os
import pathlib

from ldm_jax import cli
from ldm_jax.base import owner, platforms, remote

FLAGS = dict(
    sweep=cli.Recipe("Sweep, sweeps/NAME[:preset] or path.py[:preset].", under="sweeps"),
    workdir=cli.Text("Folder of this sweep."),
    cell=cli.Text("Run the cell of this name alone.", ""),
    dry_run=cli.Switch("Print each cell and the command that runs it, and run nothing."),
    report=cli.Switch("Only write the report of the finished cells."),
    forecast=cli.Number("FLOPs of both stages: only print what cells promise.", 0.0, least=0),
)


def main(args, overrides):
    cli.require(args, "sweep", "workdir")
    cli.refuse_several(args, "dry_run", "report", "forecast")
    cli.refuse_several(args, "report", "cell")  # a report is of all cells
    place = args.workdir
    if not args.dry_run:
        cli.mirror(args)
        cli.check_out("--workdir", args.workdir, "cells")
    from ldm_jax.sweeps import axes
    from ldm_jax.sweeps import work as work_lib

    sweep, workdir = axes.load(args.sweep, overrides), pathlib.Path(args.workdir)
    chosen = work_lib.choose(sweep, args.cell)
    work_lib.check_flags(sweep, chosen, cli.read)
    if args.dry_run:
        argv = ["python", "-m", "ldm_jax.sweep", f"--sweep={args.sweep}", f"--workdir={place}"]
        argv += [f"--config.{key}={text}" for key, text in overrides.items()]
        for line in work_lib.describe(chosen, sweep, argv):
            print(line, flush=True)
        return
    works = [work_lib.Work(cell, sweep, workdir, cli.call) for cell in chosen]
    if args.forecast:
        return print(*work_lib.forecast(workdir, works, args.forecast), sep="\n")
    if not args.report:
        # One cache for all commands, which leave it alone where the environment names it.
        platforms.cache_compilations(programs := remote.place(workdir / "compilation_cache"))
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(programs))
        with owner.of("--workdir", workdir, args.cell):
            for work in works:
                work.run()
    if not args.cell:
        work_lib.write_report(workdir, works)


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
