"""A job on a Slurm cluster, a process per GPU, queued again when it is preempted.

    python -m launch.slurm --config=configs/NAME.py --workdir=/shared/runs/NAME \\
        --nodes=2 --gpus=8 [--partition=...] [--time=24:00:00] [--dry_run]

The workdir lies on the cluster's shared file system; the code of this launch goes into it too.
With --array=8, eight jobs that start when there is room for each share what --command=sample draws
or --command=encode encodes.
"""

import pathlib

from launch import job as job_lib
from ldm_jax import cli
from ldm_jax.base import errors

FLAGS = job_lib.flags(
    nodes=cli.Integer("How many machines.", 1, least=1),
    gpus=cli.Integer("GPUs of each machine; 0 for CPUs.", 8, least=0),
    array=cli.Integer("Jobs that share the work of sample or encode.", 1, least=1),
    grace=cli.Integer("Seconds between SIGTERM and the end.", 300, least=0),
    partition=cli.Text("Partition of the cluster.", ""),
    account=cli.Text("Account that pays for the job.", ""),
    time=cli.Text("Limit of time, after which the job is queued again.", ""),
)


def main(args, overrides):
    devices = "gpu" if args.gpus else "cpu"
    if args.array > 1 and (args.command not in job_lib.WORKERS or args.nodes > 1):
        raise errors.UsageError(
            f"--array={args.array} is for --command={' or '.join(job_lib.WORKERS)} with --nodes=1."
        )
    job = job_lib.read(args, overrides, "slurm", devices, hosts=args.nodes)
    shell = job_lib.Shell(args.dry_run)
    folder = pathlib.Path(job.folder).absolute() / "launch"
    shell.run(submission(args, job, folder, job.unpack(shell, folder)))


def submission(args, job, folder, code) -> list[str]:
    """All options are arguments, so that nothing of the job is ever written into a script."""
    # JAX's own reading of Slurm: training runs a process for each GPU, and each sees all of them.
    tasks = max(args.gpus, 1) if job.command == "train" else 1
    argv = ["sbatch", f"--job-name={job.name}", f"--nodes={args.nodes}"]
    argv += [f"--ntasks-per-node={tasks}", f"--chdir={code}", "--requeue", "--open-mode=append"]
    argv += [f"--output={folder / job.label}-%j.log", f"--signal=TERM@{args.grace}"]
    argv += [f"--gres=gpu:{args.gpus}"] if args.gpus else []
    argv += [f"--array=0-{args.array - 1}"] if args.array > 1 else []
    for option in ("partition", "account", "time"):
        argv += [f"--{option}={args[option].value}"] if args[option].value else []
    kind = "cuda" if args.gpus else "cpu"
    return [*argv, str(code / "launch" / "slurm_job.sh"), kind, *job.arguments]


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
