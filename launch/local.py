"""A job on this machine: one process or several, started again when they should be.

    python -m launch.local --config=configs/NAME.py --workdir=DIR [--hosts=2] [--dry_run]
    python -m launch.local --command=sample --run=RUN --out=DIR --num=50000

One process drives all accelerators of a machine, so --hosts is for trying out what pods do, or for
a process per device. SIGTERM is passed on: the job saves, and this command ends with 42.
"""

import json
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import time

from launch import job as job_lib
from ldm_jax import cli
from ldm_jax.base import errors, remote

GRACE = 20.0  # seconds for the others to end once one has failed
POLL = 0.1


FLAGS = job_lib.flags(hosts=cli.Integer("How many processes to start.", 1, least=1))


def main(args, overrides):
    job = job_lib.read(args, overrides, "local", hosts=args.hosts, buckets=True)
    shell = job_lib.Shell(args.dry_run)
    given, staged = args[job_lib.COMMANDS[job.command]].value, job_lib.ROOT / job_lib.STAGING
    folder = staged / job.name if given.startswith(remote.SCHEME) else pathlib.Path(job.folder)
    record = folder / "launch" / f"{job.record['id']}.json"
    shell.write(record, json.dumps(job.record, indent=2) + "\n")
    argv = [sys.executable, "-m", "launch.start", str(record), *job.arguments]
    if args.dry_run:
        for env in environments(args.hosts, port=0):
            print(f"$ env {shlex.join(f'{k}={v}' for k, v in env.items())} {shlex.join(argv)}")
        return
    while code := together(argv, args.hosts):
        if code == cli.EXIT_USAGE:
            raise errors.UsageError("The job was refused; the line above says why.")
        if not job_lib.restartable(code):
            raise errors.RunError(f"The job failed with exit code {code}; its output is above.")
        print(f"launch: exit code {code}, starting again", file=sys.stderr, flush=True)


def environments(hosts: int, port: int) -> list[dict]:
    """What tells each process who it is."""
    address = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(hosts)}
    return [address | {"JAX_PROCESS_ID": str(host)} for host in range(hosts)]


def together(argv, hosts: int) -> int:
    """Runs the processes of one attempt to their end; the exit code that speaks for all.

    Raises:
      Restart: this command itself got SIGTERM, and the job has ended.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(argv, cwd=job_lib.ROOT, env=os.environ | env)
        for env in environments(hosts, port)
    ]
    asked = []

    def pass_on(signum, frame):
        asked.append(signum)
        processes[0].send_signal(signum)  # the hosts agree among themselves

    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        codes = wait(processes)
    finally:
        signal.signal(signal.SIGTERM, previous)
        for process in processes:
            process.kill()
            process.wait()
    if asked and any(codes):
        raise errors.Restart("SIGTERM: the job has saved and ended; the same command goes on.")
    return speaking(codes)


def wait(processes) -> list[int]:
    """The exit codes of those that ended by themselves, GRACE after the first failure at most."""
    deadline = float("inf")
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if None not in codes:
            break
        if any(codes):
            deadline = min(deadline, time.monotonic() + GRACE)
        time.sleep(POLL)
    return [code for code in codes if code is not None]


def speaking(codes: list[int]) -> int:
    """A failure of our own (1, 2) is never outvoted by what it does to the other processes."""
    return max(codes, key=lambda code: (code != 0, not job_lib.restartable(code)))


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
