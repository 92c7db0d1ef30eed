"""What every place would do (golden dry runs), and what it does with tools that only take notes."""

import json
import os
import pathlib
import re
import shlex
import shutil
import stat
import subprocess
import sys

import pytest
import yaml
from calling import call

from launch import gke, job, local, sky, slurm, start, tpu
from ldm_jax import cli

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = pathlib.Path(__file__).parent / "golden"
CONFIG = "--config=configs/debug.py:ldm"
NASTY = "a b'c\"d$HOME;`id`нова\\"
TPU = ["--zone=us-central2-b", "--accelerator_type=v4-32", "--devices=tpu:16", "--spot"]
TPU += ["--runtime_version=tpu-ubuntu2204-base", "--project=p"]
GKE = ["--accelerator=tpu-v5-lite-podslice", "--topology=4x4", "--slices=2", "--claim=runs"]
PLACES = {
    "local": (local, ["--workdir=runs/My_run", "--hosts=2"]),
    "tpu": (tpu, ["--workdir=/mnt/runs/my-run", *TPU]),
    "slurm": (slurm, ["--workdir=/shared/my-run", "--nodes=2", "--gpus=4", "--time=12:00:00"]),
    "gke": (gke, ["--workdir=/runs/my-run", "--image=r.dev/p/ldm", *GKE]),
    "sky": (sky, ["--workdir=/runs/my-run", "--accelerators=A100:8", "--bucket=gs://b", "--spot"]),
}
REPLIES = """import json, os, sys, pathlib
log = pathlib.Path(os.environ["FAKE_LOG"])
with open(log, "a") as f:
    f.write(json.dumps([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]) + "\\n")
file = log.with_suffix(".replies")
replies = json.loads(file.read_text())
for i, (word, text, code) in enumerate(replies):
    if word in sys.argv:
        del replies[i]
        file.write_text(json.dumps(replies))
        print(text, file=sys.stderr if code else sys.stdout)
        sys.exit(code)
"""


@pytest.fixture
def still(monkeypatch):
    """The same time, code, versions and paths every time."""
    monkeypatch.setattr(job, "now", lambda: "20260102T030405Z")
    monkeypatch.setattr(job, "ROOT", pathlib.Path("CHECKOUT"))
    monkeypatch.setattr(job, "git_state", lambda: {"commit": "c", "changed": [], "archived": "c"})
    monkeypatch.setattr(job, "versions", lambda: {"jax": "0"})
    monkeypatch.setattr(sys, "argv", ["launch"])
    monkeypatch.setattr(sys, "executable", "python")
    monkeypatch.chdir(ROOT)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """tools(*replies): gcloud, kubectl and the others note their arguments; what they noted.

    replies: (a word among the arguments, what to print, exit code), each used once, in order.
    """
    log = tmp_path / "calls.jsonl"

    def install(*replies):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name in ("gcloud", "kubectl", "docker", "sbatch", "sky"):
            file = folder / name
            file.write_text(f"#!{sys.executable}\n{REPLIES}")
            file.chmod(file.stat().st_mode | stat.S_IXUSR)
        log.with_suffix(".replies").write_text(json.dumps(replies))
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
        monkeypatch.setenv("FAKE_LOG", str(log))
        monkeypatch.setattr(job, "STAGING", str(tmp_path / "staging"))
        monkeypatch.setattr(tpu, "POLL", 0.0)
        monkeypatch.chdir(ROOT)
        return lambda: [json.loads(line) for line in log.read_text().splitlines()]

    return install


@pytest.mark.parametrize("place", PLACES)
def test_every_place_launches_other_commands_than_training(place, still, capfd):
    module, flags = PLACES[place]
    flags = [f for f in flags if not f.startswith(("--workdir", "--devices", "--slices"))]
    out = next(f for f in PLACES[place][1] if f.startswith("--workdir=")).partition("=")[2]
    drawing = ["--command=sample", "--run=runs/x", f"--out={out}", "--num=7", "--noema"]
    assert call(module, "--dry_run", *flags, *drawing, "--interval=0.2,0.9") == 0
    said = capfd.readouterr().out
    given = ["--command=sample", "--run=runs/x", f"--out={out}", "--num=7", "--interval=0.2,0.9"]
    for word in [*given, "--noema"]:
        assert word in said
    assert "--devices" not in said and "--dry_run" not in said


def test_what_a_command_cannot_be_is_refused_before_anything_is_launched(still, refused):
    say = lambda *argv: refused(call(local, *argv, "--dry_run"))
    assert "did you mean 'sample'" in say("--command=sampel", "--run=x", "--out=y")
    assert "--out is missing" in say("--command=sample", "--run=x")
    assert "num" in say("--command=sample", "--run=x", "--out=y", "--num=0")
    assert "one process" in say("--command=evaluate", "--run=x", "--out=y", "--hosts=2")
    assert "sampler" in say(CONFIG, "--workdir=x", "--sampler=ddim")


def test_hosts_share_out_what_is_drawn_and_encoded():
    environ = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}
    assert start.worker("sample", environ) == start.worker("encode", environ) == ["--worker=1/4"]
    assert start.worker("train", environ) == start.worker("sample", {}) == []
    array = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "8"}
    assert start.worker("sample", environ | {"SLURM_NTASKS": "1"} | array) == ["--worker=2/8"]


def test_finished_shards_are_progress_as_checkpoints_are(tmp_path):
    (tmp_path / "shards").mkdir()
    for i in range(6):
        (tmp_path / "shards" / f"{i}.json").touch()
        assert start.keep({"id": "now"}, tmp_path, "a") == ""
    assert [start.keep({"id": "now"}, tmp_path, "a") == "" for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("place", PLACES)
def test_dry_runs_are_as_they_were_read(place, still, capfd):
    module, flags = PLACES[place]
    assert call(module, CONFIG, "--dry_run", "--config.seed=3", *flags) == 0
    out, file = capfd.readouterr().out, GOLDEN / f"{place}.txt"
    if "UPDATE_GOLDEN" in os.environ:
        file.parent.mkdir(exist_ok=True)
        file.write_text(out)
    assert out == file.read_text(), "if it is meant: UPDATE_GOLDEN=1 launch/test.sh tests/launch"


def test_values_of_any_kind_reach_the_hosts_of_a_slice_whole(tools):
    calls = tools(("describe", "NOT_FOUND", 1), ("describe", "ACTIVE", 0))
    flags = [*PLACES["tpu"][1], f"--config.first_stage={NASTY}", "--deterministic"]
    assert call(tpu, CONFIG, *flags) == 0
    *_, ship, train, delete = calls()
    assert [c[4] for c in (ship, train)] == ["scp", "ssh"] and delete[4] == "delete"
    remote = next(a for a in train if a.startswith("--command=")).partition("=")[2]
    words = shlex.split(remote.rpartition(" && ")[2])
    assert f"--config.first_stage={NASTY}" in words
    assert "--devices=tpu:16" in words and "--deterministic" in words


def test_a_slice_that_is_taken_away_is_made_anew(tools):
    calls = tools(
        ("describe", "NOT_FOUND: no such resource", 1),
        ("describe", "WAITING_FOR_RESOURCES", 0),
        ("describe", "ACTIVE", 0),
        ("ssh", "", 255),
        ("describe", "SUSPENDED", 0),
        ("describe", "NOT_FOUND", 1),
        ("describe", "ACTIVE", 0),
        ("ssh", "", 42),
        ("describe", "ACTIVE", 0),  # only the process ended
        ("describe", "ACTIVE", 0),
    )
    assert call(tpu, CONFIG, *PLACES["tpu"][1]) == 0
    done = [c[4] for c in calls() if c[4] != "describe"]
    made, again = ["create", "scp", "ssh", "delete"], ["scp", "ssh", "delete"]
    assert done == made + made[:3] + again


def test_a_cloud_that_does_not_answer_costs_no_slice(tools):
    calls = tools(
        ("describe", "ACTIVE", 0),
        ("ssh", "", 255),
        ("describe", "UNAVAILABLE: try later", 1),
        ("describe", "ACTIVE", 0),
    )
    assert call(tpu, CONFIG, *PLACES["tpu"][1]) == 0
    done = [c[4] for c in calls() if c[4] != "describe"]
    assert done == ["scp", "ssh", "scp", "ssh", "delete"]


def test_a_slice_that_takes_no_code_is_given_up_after_some_tries(tools, capfd):
    answers = [("describe", "ACTIVE", 0), ("scp", "connection refused", 1)] * tpu.TRIES
    calls = tools(*answers, ("describe", "ACTIVE", 0))
    assert call(tpu, CONFIG, *PLACES["tpu"][1]) == 1
    assert "delete" not in [c[4] for c in calls()]
    assert "No host takes the code" in capfd.readouterr().err.splitlines()[-1]


def test_a_slice_that_the_cloud_refuses_is_asked_for_once_at_first_and_often_later(tools):
    refused = ("create", "no capacity", 1)
    none, there = ("describe", "NOT_FOUND", 1), ("describe", "ACTIVE", 0)
    calls = tools(none, refused)
    assert call(tpu, CONFIG, *PLACES["tpu"][1]) == 1
    calls = tools(there, ("ssh", "", 255), none, none, refused, none, refused, none, there)
    assert call(tpu, CONFIG, *PLACES["tpu"][1]) == 0
    assert [c[4] for c in calls()].count("create") == 4


@pytest.mark.parametrize(("code", "expected"), [(1, 1), (2, 1)])
def test_a_job_that_failed_is_not_repeated_and_the_slice_named(code, expected, tools, capfd):
    calls = tools(("describe", "ACTIVE", 0), ("ssh", "", code), ("describe", "ACTIVE", 0))
    assert call(tpu, CONFIG, *PLACES["tpu"][1]) == expected
    assert "delete" not in [c[4] for c in calls()]
    assert "my-run still runs and costs: gcloud" in capfd.readouterr().err


def test_gke_gets_an_image_of_the_tracked_files_and_a_jobset(tools, tmp_path):
    calls = tools()
    assert call(gke, CONFIG, *PLACES["gke"][1], f"--config.first_stage={NASTY}") == 0
    build, push, apply = calls()
    assert build[:2] == ["docker", "build"] and push[:2] == ["docker", "push"]
    file = next(a for a in apply if a.startswith("--filename=")).partition("=")[2]
    jobset = yaml.safe_load(pathlib.Path(file).read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (slices,) = jobset["spec"]["replicatedJobs"]
    spec = slices["template"]["spec"]
    assert slices["replicas"] == 2 and spec["parallelism"] == spec["completions"] == 4
    assert spec["completionMode"] == "Indexed" and spec["backoffLimit"] == 0
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1, 2]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["restartPolicy"] == "Never" and container["image"] == push[2]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert f"--config.first_stage={NASTY}" in container["args"]
    assert pod["volumes"][0]["name"] == container["volumeMounts"][0]["name"]


def test_slurm_gets_every_value_as_an_argument(tools, tmp_path):
    calls = tools()
    workdir = tmp_path / "my run"
    argv = [CONFIG, f"--workdir={workdir}", "--nodes=2", f"--config.first_stage={NASTY}"]
    assert call(slurm, *argv) == 0
    (submitted,) = calls()
    assert submitted[-1] == f"--config.first_stage={NASTY}" and "--requeue" in submitted
    code = pathlib.Path(next(a for a in submitted if a.startswith("--chdir=")).partition("=")[2])
    assert (code / "launch" / "slurm_job.sh").is_file() and (code / "ldm_jax").is_dir()
    assert json.loads((code / "launch.json").read_text())["place"] == "slurm"
    assert not (code / "tests").exists() and not (code / ".git").exists()


def test_sky_gets_a_managed_job_that_recovers_from_42(tools):
    calls = tools()
    assert call(sky, CONFIG, *PLACES["sky"][1], "--nodes=2", f"--config.first_stage={NASTY}") == 0
    (launched,) = calls()
    assert launched[:3] == ["sky", "jobs", "launch"]
    task = yaml.safe_load(pathlib.Path(launched[-1]).read_text())
    assert shlex.split(task["run"])[-1] == f"--config.first_stage={NASTY}"
    assert task["num_nodes"] == 2 and task["file_mounts"]["/runs"]["source"] == "gs://b"
    again = task["resources"]["job_recovery"]["recover_on_exit_codes"]
    assert {42, 134, 137} < set(again) and all(map(job.restartable, again))
    assert pathlib.Path(task["workdir"], "launch", "on_host.sh").is_file()
    assert "accelerator_args" not in task["resources"]


def test_sky_gives_a_tpu_its_software_and_a_gpu_none(tools, refused):
    calls, flags = tools(), ["--workdir=/runs/my-run", "--bucket=gs://b", "--runtime_version=v2"]
    assert call(sky, CONFIG, *flags, "--accelerators=tpu-v5e-8") == 0
    (launched,) = calls()
    task = yaml.safe_load(pathlib.Path(launched[-1]).read_text())
    assert task["resources"]["accelerator_args"] == {"runtime_version": "v2"}
    assert "only TPUs" in refused(call(sky, CONFIG, *flags, "--accelerators=A100:8"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=s3://b/x"], "mount the bucket"),
        (["--workdir=x", "--name=9"], "--name=9"),
        (["--workdir=x", "--config=configs/none.py"], "no file, recipe or run configs/none.py"),
        ([], "--workdir is missing"),
    ],
)
def test_bad_flags_are_refused_in_a_line(flags, message, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert call(local, CONFIG, *flags, "--dry_run") == cli.EXIT_USAGE
    err = capfd.readouterr().err
    assert message in err and len(err.splitlines()) == 1


def test_a_tool_that_is_not_there_is_named(still, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(job.Launch, "pack", lambda self, shell, folder: folder / "x")
    monkeypatch.setattr(job, "ROOT", ROOT)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert call(tpu, CONFIG, *PLACES["tpu"][1]) == cli.EXIT_USAGE
    assert "gcloud is not on the PATH" in capfd.readouterr().err


def test_two_restarts_without_progress_end_the_job(tmp_path):
    record = {"id": "now"}
    for step, problem in [(0, ""), (0, ""), (5, ""), (5, ""), (5, ""), (5, "beyond step 5")]:
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkpoints" / str(step) / "meta").touch()
        found = {start.keep(record, tmp_path, host) for host in "abcd"}
        assert len(found) == 1, "hosts that share a workdir come to the same conclusion"
        assert bool(found := found.pop()) == bool(problem) and problem in found
    assert start.keep({"id": "later"}, tmp_path, "a") == "", "a new launch counts anew"
    assert json.loads((tmp_path / "launch" / "now.json").read_text()) == record


@pytest.mark.parametrize(
    ("codes", "spoken"),
    [([0, 0], 0), ([0, 42], 42), ([-9, 42], -9), ([1, -6], 1), ([42, 2], 2), ([0, -9], -9)],
)
def test_one_exit_code_speaks_for_all(codes, spoken):
    assert local.speaking(codes) == spoken


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="asks the real gcloud")
@pytest.mark.slow
def test_gcloud_understands_every_command(still, tmp_path, capfd):
    call(tpu, CONFIG, "--dry_run", *PLACES["tpu"][1])
    printed = [line for line in capfd.readouterr().out.splitlines() if line.startswith("$ gcloud")]
    assert len(printed) == 6
    env = os.environ | {"CLOUDSDK_CONFIG": str(tmp_path), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}
    env["CLOUDSDK_CORE_CHECK_GCE_METADATA"] = "false"
    for line in printed:
        argv = shlex.split(line[2:], comments=True)
        if argv[4] == "scp":
            (tmp_path / "x.tar.gz").touch()
            argv[5] = str(tmp_path / "x.tar.gz")
        done = subprocess.run(argv, env=env, capture_output=True, text=True)
        # 2: the command line is wrong. 1: it is right, and nobody is logged in.
        assert done.returncode == 1 and "account" in done.stderr, (line, done.stderr)


def test_the_scripts_are_well_formed():
    for script in (ROOT / "launch").glob("*.sh"):
        subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.batch_size=-1", "config.batch_size=-1 must be"),
        ("--config.modl.width=8", "did you mean 'model'"),
        ("--workdir=runs/x", "a path from the root"),
        ("--time=a\nb", "--time=a b: it must be a line of text"),
    ],
)
def test_what_a_host_would_refuse_is_refused_before_it_is_asked_for(flag, words, refused):
    argv = [CONFIG, "--workdir=/runs/x", "--nodes=1", "--dry_run", flag]
    assert words in refused(call(slurm, *argv))


# In the place of `python`: launchers and dry runs as they are, of other commands the flags alone.
SHIM = """#!{python}
import importlib, os, sys
module, argv = sys.argv[2], sys.argv[3:]
if module.startswith("launch.") or "--dry_run" in argv:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
from ldm_jax import cli
command = importlib.import_module(module)
cli.parse(cli.define(command.FLAGS, argv), argv)
"""


@pytest.mark.slow
def test_the_commands_of_the_page_work_as_they_are_printed(tools, tmp_path):
    calls = tools()
    shim = tmp_path / "bin" / "python"
    shim.write_text(SHIM.format(python=sys.executable))
    shim.chmod(0o755)
    text = (ROOT / "docs" / "launch.md").read_text().replace("BUCKET", "bucket")
    text = text.replace("downsampling:tiny", "downsampling:debug")  # which is planned sooner
    for spot in ("--spot\n", '--spot"\n'):  # of a slice that is never there
        text = text.replace(spot, spot.replace("--spot", "--spot --dry_run"))
    text = text.replace("/shared", str(tmp_path / "shared"))
    own = text.partition("## 50,000 samples")[2].partition("## Exit codes")[0]
    blocks = re.findall(r"```bash\n(.*?)```", own, re.DOTALL)
    assert len(blocks) == 8
    said = ""
    for block in blocks:
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        run = ["bash", "-euo", "pipefail", "-c", block]
        done = subprocess.run(
            run, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0 and "ldm_jax: " not in done.stderr, (block, done.stderr)
        said += done.stdout
    array, *cells = calls()
    assert "--array=0-7" in array and "--gres=gpu:1" in array and len(cells) == 2
    assert {c[-1].partition("=")[0] for c in cells} == {"--cell"}
    assert said.count("--node-id=f2-kl-c2-s0") == 1 and said.count("--node-id=samples") == 1
