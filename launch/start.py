"""What every place runs on every host: keeps the record, counts the starts, becomes the command.

    python -m launch.start LAUNCH.json [--command=train] FLAGS OF THE COMMAND

The record goes to FOLDER/launch/ID.json, where FOLDER is what the command writes to, and each start
of the launch with what was done by then to ID.starts.HOST.jsonl. Two restarts that brought nothing
new end the job. Every host keeps its own count: before they have found each other, none knows that
it is the first. Hosts of `sample` and `encode` share the work out by --worker.
"""

import collections
import json
import os
import pathlib
import re
import socket
import sys
import time

from launch import job as job_lib
from ldm_jax import cli
from ldm_jax.base import disk, errors, remote, values

START = values.Fields({"step": values.Number(0, whole=True)})  # a line of the starts
USELESS = 2  # restarts without progress
STEP = re.compile("(?P<run>(.*/)?)checkpoints/(?P<step>[0-9]+)/")  # files of what is done
SHARD = re.compile("(.*/)?shards/[^/]+[.]json")
# What numbers and counts the processes of a job; elsewhere (TPU VMs, pods) a host is one process.
PROCESSES = (("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"),)
PROCESSES += (("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"), ("SLURM_PROCID", "SLURM_NTASKS"))


def main(argv):
    record, arguments = json.loads(pathlib.Path(argv[0]).read_text()), argv[1:]
    command = "train"
    if arguments and arguments[0].startswith("--command="):
        command = arguments.pop(0).partition("=")[2]
    flag = f"--{job_lib.COMMANDS[command]}"
    path = next(a.partition("=")[2] for a in arguments if a.startswith(f"{flag}="))
    host = next((os.environ[i] for i, _ in PROCESSES if i in os.environ), socket.gethostname())
    try:
        folder = remote.local(path, write=True, whole=False)
        cli.check_writable(flag, folder)
        problem, code = keep(record, pathlib.Path(folder), host), cli.EXIT_FAILED
        remote.settle()
    except errors.UsageError as e:
        problem, code = str(e), cli.EXIT_USAGE
    except errors.RunError as e:
        problem, code = str(e), cli.EXIT_FAILED
    except OSError as e:  # a full disk, for instance
        problem, code = f"{e.filename or path}: {e.strerror}", cli.EXIT_FAILED
    remote.discard()
    if problem:
        print(f"launch: {problem}", file=sys.stderr, flush=True)
        sys.exit(code)
    if not any(argument.startswith("--worker") for argument in arguments):
        arguments += worker(command, os.environ)
    # The same process from here on: signals reach the command, and its exit code is the job's.
    os.execv(sys.executable, [sys.executable, "-m", f"ldm_jax.{command}", *arguments])


def worker(command: str, environ) -> list[str]:
    """The flag that gives this process its share, where several processes are to share the work."""
    for index, count in PROCESSES:
        if command in job_lib.WORKERS and int(environ.get(count, 1)) > 1:
            return [f"--worker={environ[index]}/{environ[count]}"]
    return []


def keep(record: dict, written: pathlib.Path, host: str) -> str:
    """Writes record and start; returns why the job should end, or "". written: by the command."""
    folder = written / "launch"
    remote.fetch(folder)
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / f".{record['id']}.{host}.tmp"  # all hosts write the same: never half of it
    disk.write_json(whole, record)
    whole.replace(folder / f"{record['id']}.json")
    starts = folder / f"{record['id']}.starts.{host}.jsonl"
    before, step = disk.read_jsonl(starts, START), progress(written)
    lately = [line["step"] for line in before][-1 - USELESS :]
    if len(lately) > USELESS and set(lately) == {step}:
        return (
            f"{USELESS} restarts brought no checkpoint, or shard, beyond step {step}: not started "
            "again. See what the log says, save more often (config.steps.checkpoint or "
            "--shard_size), launch anew."
        )
    disk.write_jsonl(starts, [*before, {"step": step, "time": time.time()}])
    return ""


def progress(folder: pathlib.Path) -> int:
    """What is done: the newest steps of the trainings in `folder`, and the finished shards."""
    names, newest = remote.names(folder), collections.defaultdict(int)
    for found in filter(None, map(STEP.match, names)):
        newest[found["run"]] = max(newest[found["run"]], int(found["step"]))
    return sum(newest.values()) + sum(1 for name in names if SHARD.fullmatch(name))


if __name__ == "__main__":
    main(sys.argv[1:])
