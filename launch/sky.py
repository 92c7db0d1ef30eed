"""A job on any cloud that SkyPilot knows, as a managed job that recovers from preemption.

    python -m launch.sky --config=configs/NAME.py --workdir=/runs/NAME --accelerators=A100:8 \\
        --bucket=gs://BUCKET [--nodes=2] [--spot] [--dry_run]

The bucket is mounted at --mount, under which the workdir lies.
"""

import shlex
import signal

import yaml

from launch import job as job_lib
from ldm_jax import cli
from ldm_jax.base import errors

# By which processes end that lost a host, their machine or their memory.
SIGNALS = (signal.SIGABRT, signal.SIGBUS, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)


FLAGS = job_lib.flags(
    accelerators=cli.Text("Accelerators of each machine, e.g. A100:8 or tpu-v5e-8."),
    nodes=cli.Integer("How many machines.", 1, least=1),
    bucket=cli.Text("Storage of the runs, gs:// or s3://."),
    mount=cli.Text("Folder where the bucket is mounted.", "/runs"),
    runtime_version=cli.Text("Software of the TPU VM; SkyPilot's choice by default.", ""),
    spot=cli.Switch("Take cheaper machines, which may be taken away at any time."),
)


def main(args, overrides):
    cli.require(args, "accelerators", "bucket")
    kind = "tpu" if args.accelerators.lower().startswith("tpu") else "cuda"
    if args.runtime_version and kind != "tpu":
        raise errors.UsageError(
            f"--runtime_version={args.runtime_version}: only TPUs have one, not "
            f"--accelerators={args.accelerators}."
        )
    devices = {"tpu": "tpu", "cuda": "gpu"}[kind]
    job = job_lib.read(args, overrides, "sky", devices, hosts=args.nodes)
    job.check_under(args.mount)
    shell = job_lib.Shell(args.dry_run)
    folder = job_lib.ROOT / job_lib.STAGING / job.name
    code, file = job.unpack(shell, folder), folder / f"{job.label}.yaml"
    shell.write(file, yaml.safe_dump(task(args, job, code, kind), sort_keys=False))
    shell.run(["sky", "jobs", "launch", f"--name={job.name}", "--yes", str(file)])


def task(args, job, code, kind: str) -> dict:
    """SkyPilot's task; `run` is read by a shell on every node."""
    on_host = ["bash", "launch/on_host.sh", kind, *job.arguments]
    again = [cli.EXIT_RESTART, *(128 + number for number in SIGNALS)]
    resources = {
        "accelerators": args.accelerators,
        "use_spot": args.spot,
        "job_recovery": {"strategy": "FAILOVER", "recover_on_exit_codes": again},
    }
    if args.runtime_version:  # SkyPilot's own choice for every v5 is the software of v5p
        resources["accelerator_args"] = {"runtime_version": args.runtime_version}
    return {
        "name": job.name,
        "workdir": str(code),
        "num_nodes": args.nodes,
        "resources": resources,
        "file_mounts": {args.mount: {"source": args.bucket, "mode": "MOUNT"}},
        "run": shlex.join(on_host) + "\n",
    }


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
