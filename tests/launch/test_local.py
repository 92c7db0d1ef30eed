"""A real launch of two processes: one is killed, the job comes back by itself and ends."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import compiling
import psutil
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETTINGS = ["first_stage=identity", "model.mult=(1,)", "model.attention=()", "latents.scale=1.0"]
SETTINGS += ["steps.total=30", "steps.log=2", "steps.eval=30", "steps.checkpoint=4"]
SETTINGS += ["eval.records=8", "eval.batch_size=8"]


@pytest.mark.slow
def test_a_job_whose_process_is_killed_comes_back_and_ends(tmp_path):
    workdir = tmp_path / "my run"
    argv = [sys.executable, "-m", "launch.local", "--config=configs/debug.py:ldm", "--hosts=2"]
    argv += [f"--workdir={workdir}", "--devices=cpu:2", *(f"--config.{s}" for s in SETTINGS)]
    env = os.environ | {"XLA_FLAGS": compiling.FAST}
    with subprocess.Popen(argv, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as job:
        try:
            deadline = time.monotonic() + 600
            while not list((workdir / "checkpoints").glob("[0-9]")):
                assert job.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            victim = psutil.Process(job.pid).children()[1]
            victim.send_signal(signal.SIGKILL)
            _, err = job.communicate(timeout=900)
        finally:
            for process in psutil.Process(job.pid).children() if job.poll() is None else []:
                process.kill()
            job.kill()
    assert job.returncode == 0, err
    assert err.count("starting again") == 1, err
    lines = [json.loads(s) for s in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "denoiser/loss" in line] == list(range(2, 31, 2))
    for host in "01":
        (starts,) = (workdir / "launch").glob(f"*.starts.{host}.jsonl")
        steps = [json.loads(s)["step"] for s in starts.read_text().splitlines()]
        assert steps[0] == 0 and steps[1] >= 4 and len(steps) == 2
    assert json.loads((workdir / "summary.json").read_text())["goodput"]["sessions"] == 2
