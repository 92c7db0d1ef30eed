"""A job on any cloud that SkyPilot knows, as a managed job that recovers from preemption.

    python -m launch.sky --config=configs/NAME.py --workdir=/runs/NAME --accelerators=A100:8 \\
        --bucket=gs://BUCKET [--nodes=2] [--spot] [--dry_run]

The bucket is mounted at --mount, under which the workdir lies.
"""

import shlex
import signal

import yaml
from absl import flags

from launch import job as job_lib
from ldm_jax import cli
from ldm_jax.base import errors

# By which processes end that lost a host, their machine or their memory.
SIGNALS = (signal.SIGABRT, signal.SIGBUS, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)


def define(values):
    job_lib.define(values)
    flags.DEFINE_string("accelerators", None, "e.g. A100:8, tpu-v5e-8", flag_values=values)
    flags.DEFINE_integer("nodes", 1, "machines", lower_bound=1, flag_values=values)
    flags.DEFINE_string("bucket", None, "storage of the runs, gs:// or s3://", flag_values=values)
    flags.DEFINE_string("mount", "/runs", "where it is mounted", flag_values=values)
    flags.DEFINE_string(
        "runtime_version", "", "the TPU VM's software; SkyPilot's choice else", flag_values=values
    )
    flags.DEFINE_bool("spot", False, "cheaper, and taken away at any time", flag_values=values)


def main(args, overrides):
    cli.require(args, "accelerators", "bucket")
    kind = "tpu" if args.accelerators.lower().startswith("tpu") else "cuda"
    if args.runtime_version and kind != "tpu":
        raise errors.UsageError(
            f"--runtime_version={args.runtime_version}: only TPUs have one, not "
            f"--accelerators={args.accelerators}."
        )
    devices = {"tpu": "tpu", "cuda": "gpu"}[kind]
    job = job_lib.read(args, overrides, "sky", devices=devices)
    if not job.workdir.is_relative_to(args.mount):
        raise errors.UsageError(f"--workdir={job.workdir} must lie under --mount={args.mount}.")
    hands = job_lib.Hands(args.dry_run)
    folder = job_lib.ROOT / job_lib.STAGING / job.name
    code, file = folder / job.label, folder / f"{job.label}.yaml"
    archive = job.pack(hands, folder)
    hands.run(["mkdir", "-p", str(code)])
    hands.run(["tar", "-xzf", str(archive), "-C", str(code)])
    hands.write(file, yaml.safe_dump(task(args, job, code, kind), sort_keys=False))
    hands.run(["sky", "jobs", "launch", f"--name={job.name}", "--yes", str(file)])


def task(args, job, code, kind: str) -> dict:
    """SkyPilot's task; `run` is read by a shell on every node."""
    on_host = ["bash", "launch/on_host.sh", kind, *job.train]
    again = [cli.EXIT_RESTART, *(128 + number for number in SIGNALS)]
    recovery = {"strategy": "FAILOVER", "recover_on_exit_codes": again}
    resources = {
        "accelerators": args.accelerators,
        "use_spot": args.spot,
        "job_recovery": recovery,
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
    cli.start(__doc__, define, main)
