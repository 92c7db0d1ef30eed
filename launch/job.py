"""One job for every place: what is trained, the code that travels, the record of the launch.

A place (launch.local, launch.tpu, ...) is a module that asks for a `Job` and hands its commands to
`Hands`, which carries them out or, on --dry_run, prints them. Commands are lists of arguments;
where another machine's shell has to read one, it is quoted by shlex and nothing else.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
import platform
import re
import shlex
import subprocess
import sys

from absl import flags

from ldm_jax import cli
from ldm_jax.base import errors, remote

ROOT = pathlib.Path(__file__).resolve().parent.parent
STAGING = "runs/launch"  # under the checkout, where git does not look
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")


def define(values):
    """The flags that every place has."""
    flags.DEFINE_string("config", None, "config file, path.py[:variant]", flag_values=values)
    flags.DEFINE_string(
        "workdir", None, "folder of the run, as the hosts see it", flag_values=values
    )
    flags.DEFINE_string("name", "", "of the job; by default the workdir's", flag_values=values)
    flags.DEFINE_string("devices", None, "what must be there, e.g. tpu:16", flag_values=values)
    flags.DEFINE_bool("deterministic", False, "as in ldm_jax.train", flag_values=values)
    flags.DEFINE_list("allow_config_change", [], "as in ldm_jax.train", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "print commands and files only", flag_values=values)


def restartable(code: int) -> bool:
    """42 is "restart me"; a signal (negative in Python, 128 + n in a shell) says nothing of us."""
    return code == cli.EXIT_RESTART or code < 0 or code > 128


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained.

    train: the arguments of ldm_jax.train.
    record: what is kept of this launch; its "id" names it.
    """

    name: str
    workdir: pathlib.PurePosixPath
    train: tuple[str, ...]
    record: dict

    @property
    def label(self) -> str:
        """A name of this launch alone."""
        return f"{self.name}-{self.record['id'].lower()}"

    def pack(self, hands: "Hands", folder: pathlib.Path) -> pathlib.Path:
        """An archive of the tracked files as they are now, tests aside, and launch.json."""
        record, archive = folder / "launch.json", folder / f"{self.label}.tar.gz"
        hands.write(record, json.dumps(self.record, indent=2) + "\n")
        source = self.record["git"]["archived"]
        if not source:
            raise errors.UsageError(f"{ROOT} is no git checkout: clone the project to launch it.")
        argv = ["git", "-C", str(ROOT), "archive", "--format=tar.gz", f"--output={archive}"]
        hands.run([*argv, f"--add-file={record}", source, "--", ".", ":!tests"])
        return archive


class Hands:
    """Does what a place decides, or prints it."""

    def __init__(self, dry_run: bool):
        self.dry_run = dry_run

    def write(self, path, text: str):
        if self.dry_run:
            return print(f"# {path}\n{text}", end="")
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(path).write_text(text)

    def run(self, argv: list[str], stdin=None, check: bool = True) -> int:
        """The exit code; RunError for another than 0 if `check`. stdin: a file to read from."""
        print(
            f"$ {shlex.join(argv)}" + (f" < {shlex.quote(str(stdin))}" if stdin else ""), flush=True
        )
        if self.dry_run:
            return 0
        with open(stdin or "/dev/null", "rb") as file:
            code = self._start(subprocess.run, argv, stdin=file).returncode
        if check and code:
            raise errors.RunError(f"{argv[0]} ended with {code}; what it said is above.")
        return code

    def ask(self, argv: list[str], dry: str) -> tuple[str, str]:
        """What the command prints and, where it fails, why; (`dry`, "") on a dry run."""
        if self.dry_run:
            print(f"$ {shlex.join(argv)}  # {dry or 'nothing'}", flush=True)
            return dry, ""
        done = self._start(subprocess.run, argv, capture_output=True, text=True)
        why = (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""
        return done.stdout.strip(), why

    @staticmethod
    def _start(call, argv, **kwargs):
        try:
            return call(argv, **kwargs)
        except FileNotFoundError as e:
            raise errors.UsageError(f"{argv[0]} is not on the PATH: install it.") from e


def read(args, overrides: dict, place: str, devices: str = "", buckets: bool = False) -> Job:
    """The job that the flags describe. buckets: its hosts may have the workdir on gs:// itself.

    Raises:
      UsageError: a flag is missing, or the name suits no cloud.
    """
    cli.require(args, "config", "workdir")
    if not (buckets and args.workdir.startswith(remote.SCHEME)):
        cli.check_mounted("--workdir", args.workdir)
    file = args.config.partition(":")[0]
    if not (ROOT / file).is_file() and not pathlib.Path(file).is_file():
        raise errors.UsageError(f"--config={args.config}: there is no file {file}.")
    name = args.name or re.sub(r"[^a-z0-9]+", "-", pathlib.Path(args.workdir).name.lower())
    if not NAME.fullmatch(name):
        raise errors.UsageError(
            f"--name={name}: use a-z, 0-9 and -, a letter first, 40 characters at most."
        )
    devices = devices if args.devices is None else args.devices
    train = [f"--config={args.config}", f"--workdir={args.workdir}"]
    train += [f"--devices={devices}"] if devices else []
    train += ["--deterministic"] if args.deterministic else []
    if args.allow_config_change:
        train.append(f"--allow_config_change={','.join(args.allow_config_change)}")
    train += [f"--config.{key}={text}" for key, text in overrides.items()]
    record = {"id": now(), "place": place, "argv": sys.argv, "train": train}
    record |= {"git": git_state(), "versions": versions()}
    return Job(name, pathlib.PurePosixPath(args.workdir), tuple(train), record)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")


def git_state() -> dict:
    """The commit, the tracked files that differ from it, and a commit that holds those too."""

    def git(*argv) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *argv], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD")
    whoever = ("-c", "user.name=launch", "-c", "user.email=launch@localhost")
    snapshot = git(*whoever, "stash", "create")  # touches neither files nor the stash
    changed = git("diff", "--name-only", "HEAD").splitlines()
    return {"commit": commit, "changed": changed, "archived": snapshot or commit}


def versions() -> dict:
    known = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | known
