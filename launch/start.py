"""What every place runs on every host: keeps the record, counts the starts, becomes the training.

    python -m launch.start LAUNCH.json --config=... --workdir=...

The record goes to WORKDIR/launch/ID.json, and each start of the launch with the newest checkpoint
of that moment to ID.starts.HOST.jsonl. Two restarts that brought no new checkpoint end the job.
Every host keeps its own count: before they have found each other, none knows that it is the first.
"""

import json
import os
import pathlib
import socket
import sys
import time

from ldm_jax import cli
from ldm_jax.base import errors, remote

USELESS = 2  # restarts without progress
# What numbers processes over all hosts of a job; elsewhere (TPU VMs, pods) a host is one process.
INDEX = ("JAX_PROCESS_ID", "SLURM_PROCID")


def main(argv):
    record, train = json.loads(pathlib.Path(argv[0]).read_text()), argv[1:]
    workdir = next(a.partition("=")[2] for a in train if a.startswith("--workdir="))
    host = next((os.environ[name] for name in INDEX if name in os.environ), socket.gethostname())
    try:
        folder = remote.local(workdir, write=True)
        cli.check_writable("--workdir", folder)
        problem, code = keep(record, pathlib.Path(folder), host), cli.EXIT_FAILED
        remote.push()
    except errors.UsageError as e:
        problem, code = str(e), cli.EXIT_USAGE
    if problem:
        print(f"launch: {problem}", file=sys.stderr, flush=True)
        sys.exit(code)
    # The same process from here on: signals reach the training, and its exit code is the job's.
    os.execv(sys.executable, [sys.executable, "-m", "ldm_jax.train", *train])


def keep(record: dict, workdir: pathlib.Path, host: str) -> str:
    """Writes record and start; returns why the job should end, or ""."""
    folder = workdir / "launch"
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / f".{record['id']}.{host}.tmp"  # all hosts write the same: never half of it
    whole.write_text(json.dumps(record, indent=2) + "\n")
    whole.replace(folder / f"{record['id']}.json")
    starts = folder / f"{record['id']}.starts.{host}.jsonl"
    before = starts.read_text().splitlines() if starts.exists() else []
    step = newest_step(workdir)
    lately = [json.loads(line)["step"] for line in before][-1 - USELESS :]
    if len(lately) > USELESS and set(lately) == {step}:
        return (
            f"{USELESS} restarts brought no checkpoint beyond step {step}: not started again. See "
            "what the log says, save more often (config.steps.checkpoint), launch anew."
        )
    with open(starts, "a") as file:
        file.write(json.dumps({"step": step, "time": time.time()}) + "\n")
    return ""


def newest_step(workdir: pathlib.Path) -> int:
    """Of the finished checkpoints; 0 where there is none."""
    names = (path.name for path in remote.place(workdir / "checkpoints").glob("[0-9]*"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


if __name__ == "__main__":
    main(sys.argv[1:])
