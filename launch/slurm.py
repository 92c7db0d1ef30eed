"""A job on a Slurm cluster, a process per GPU, queued again when it is preempted.

    python -m launch.slurm --config=configs/NAME.py --workdir=/shared/runs/NAME \\
        --nodes=2 --gpus=8 [--partition=...] [--time=24:00:00] [--dry_run]

The workdir lies on the cluster's shared file system; the code of this launch goes into it too.
"""

import pathlib

from absl import flags

from launch import job as job_lib
from ldm_jax import cli


def define(values):
    job_lib.define(values)
    flags.DEFINE_integer("nodes", 1, "machines", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("gpus", 8, "per node; 0 for CPUs", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("grace", 300, "seconds between SIGTERM and the end", flag_values=values)
    flags.DEFINE_string("partition", "", "Slurm's", flag_values=values)
    flags.DEFINE_string("account", "", "Slurm's", flag_values=values)
    flags.DEFINE_string("time", "", "limit, after which it is queued again", flag_values=values)


def main(args, overrides):
    job = job_lib.read(args, overrides, "slurm", devices="gpu" if args.gpus else "cpu")
    hands = job_lib.Hands(args.dry_run)
    folder = pathlib.Path(job.workdir).absolute() / "launch"
    code = folder / job.label
    archive = job.pack(hands, folder)
    hands.run(["mkdir", "-p", str(code)])
    hands.run(["tar", "-xzf", str(archive), "-C", str(code)])
    hands.run(submission(args, job, folder, code))


def submission(args, job, folder, code) -> list[str]:
    """All options are arguments, so that nothing of the job is ever written into a script."""
    tasks = max(args.gpus, 1)  # JAX's own reading of Slurm: a process per GPU, each seeing all
    argv = ["sbatch", f"--job-name={job.name}", f"--nodes={args.nodes}"]
    argv += [f"--ntasks-per-node={tasks}", f"--chdir={code}", "--requeue", "--open-mode=append"]
    argv += [f"--output={folder / job.label}-%j.log", f"--signal=TERM@{args.grace}"]
    argv += [f"--gres=gpu:{args.gpus}"] if args.gpus else []
    for option in ("partition", "account", "time"):
        argv += [f"--{option}={args[option].value}"] if args[option].value else []
    kind = "cuda" if args.gpus else "cpu"
    return [*argv, str(code / "launch" / "slurm_job.sh"), kind, *job.train]


if __name__ == "__main__":
    cli.start(__doc__, define, main)
