"""One job for every place: which command runs, the code that travels, the record of the launch.

A place (launch.local, launch.tpu, ...) is a module that asks for a `Launch` and gives its commands
to a `Shell`, which runs them or, on --dry_run, prints them. Commands are lists of arguments; where
another machine's shell has to read one, it is quoted by shlex and nothing else.
"""

import dataclasses
import datetime
import importlib
import importlib.metadata
import json
import pathlib
import platform
import re
import shlex
import subprocess
import sys

from ldm_jax import cli
from ldm_jax.base import errors, recipes, remote
from ldm_jax.base import record as record_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent
STAGING = "runs/launch"  # under the checkout, where git does not look
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
# {command: the flag of the folder that it writes}
COMMANDS = dict(
    train="workdir", sample="out", encode="out", evaluate="out", adherence="out", sweep="workdir"
)
WORKERS = ("sample", "encode")  # they share their work out by --worker
OWN = dict(
    command=cli.Choice("Command of ldm_jax to run.", "train", of=tuple(COMMANDS)),
    name=cli.Text("Name of the job; by default the name of its folder.", ""),
    dry_run=cli.Switch("Print commands and files, and do nothing."),
)


def flags(**place):
    """(arguments) -> the flags of a place: its own, and those of the command to run."""
    return lambda argv: {**_flags_of(_command(argv)), **OWN, **place}


def _command(argv) -> str:
    """Of --command NAME or --command=NAME, as the flags of a command are known only by its name."""
    for word, following in zip(argv, [*argv[1:], ""]):
        name, equals, value = word.lstrip("-").partition("=")
        if name == "command":
            return value if equals else following
    return "train"


def _flags_of(command: str) -> dict:
    return importlib.import_module(f"ldm_jax.{command}").FLAGS if command in COMMANDS else {}


def restartable(code: int) -> bool:
    """42 is "restart me"; a signal (negative in Python, 128 + n in a shell) says nothing of us."""
    return code == cli.EXIT_RESTART or code < 0 or code > 128


@dataclasses.dataclass(frozen=True)
class Launch:
    """What is launched.

    folder: where the command writes, as the hosts see it.
    arguments: of launch.start on each host, after the file of the record.
    record: what is kept of this launch; its "id" names it.
    """

    name: str
    command: str
    folder: pathlib.PurePosixPath
    arguments: tuple[str, ...]
    record: dict

    @property
    def label(self) -> str:
        """A name of this launch alone."""
        return f"{self.name}-{self.record['id'].lower()}"

    def check_under(self, mount: str):
        """Raises UsageError where the folder does not lie under --mount."""
        if not self.folder.is_relative_to(mount):
            flag = COMMANDS[self.command]
            raise errors.UsageError(f"--{flag}={self.folder} must lie under --mount={mount}.")

    def pack(self, shell: "Shell", folder: pathlib.Path) -> pathlib.Path:
        """An archive of the tracked files as they are now, tests aside, and launch.json."""
        record, archive = folder / "launch.json", folder / f"{self.label}.tar.gz"
        shell.write(record, json.dumps(self.record, indent=2) + "\n")
        source = self.record["git"]["archived"]
        if not source:
            raise errors.UsageError(f"{ROOT} is no git checkout: clone the project to launch it.")
        argv = ["git", "-C", str(ROOT), "archive", "--format=tar.gz", f"--output={archive}"]
        shell.run([*argv, f"--add-file={record}", source, "--", ".", ":!tests"])
        return archive

    def unpack(self, shell: "Shell", folder: pathlib.Path) -> pathlib.Path:
        """The folder that holds the code of this launch, packed and unpacked in `folder`."""
        archive, code = self.pack(shell, folder), folder / self.label
        shell.run(["mkdir", "-p", str(code)])
        shell.run(["tar", "-xzf", str(archive), "-C", str(code)])
        return code


class Shell:
    """Writes files and runs commands or, on a dry run, prints them."""

    def __init__(self, dry_run: bool):
        self.dry_run = dry_run

    def write(self, path, text: str):
        if self.dry_run:
            return print(f"# {path}\n{text}", end="")
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(path).write_text(text)

    def run(self, argv: list[str], stdin=None, check: bool = True) -> int:
        """The exit code; RunError for another than 0 if `check`. stdin: a file to read from."""
        source = f" < {shlex.quote(str(stdin))}" if stdin else ""
        print(f"$ {shlex.join(argv)}{source}", flush=True)
        if self.dry_run:
            return 0
        with open(stdin or "/dev/null", "rb") as file:
            code = self._start(argv, stdin=file).returncode
        if check and code:
            raise errors.RunError(f"{argv[0]} ended with {code}; what it said is above.")
        return code

    def ask(self, argv: list[str], dry: str) -> tuple[str, str]:
        """What the command prints and, where it fails, why; (`dry`, "") on a dry run."""
        if self.dry_run:
            print(f"$ {shlex.join(argv)}  # {dry or 'nothing'}", flush=True)
            return dry, ""
        done = self._start(argv, capture_output=True, text=True)
        why = (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""
        return done.stdout.strip(), why

    @staticmethod
    def _start(argv, **kwargs):
        try:
            return subprocess.run(argv, **kwargs)
        except FileNotFoundError as e:
            raise errors.UsageError(f"{argv[0]} is not on the PATH: install it.") from e


def read(
    args, overrides: dict, place: str, devices: str = "", buckets: bool = False, hosts: int = 1
) -> Launch:
    """The job that the flags describe.

    devices: what training asks for where --devices is not given. buckets: the hosts may write to
    gs:// itself. hosts: how many processes there are.

    Raises:
      UsageError: a flag is missing, the command runs as one process alone, or no cloud takes the
        name.
    """
    command, flag = args.command, COMMANDS[args.command]
    cli.require(args, *(("config",) if command == "train" else ()), flag)
    folder = args[flag].value
    if not (buckets and folder.startswith(remote.SCHEME)):
        cli.check_mounted(f"--{flag}", folder)
    if place != "local" and not folder.startswith((remote.SCHEME, "/")):
        raise errors.UsageError(
            f"--{flag}={folder}: hosts start in folders of their own; give a path from the root."
        )
    if hosts > 1 and command not in ("train", *WORKERS):
        raise errors.UsageError(f"--command={command} runs as one process, not as {hosts}.")
    config = args.config if "config" in args and args.config else ""
    if config and not _is_here(config) and not _is_here(f"{ROOT}/{config}"):
        raise errors.UsageError(
            f"--config={config}: there is no file, recipe or run {config}{recipes.nearest(config)}"
        )
    if command == "train":
        from ldm_jax.runs import data

        data.load(config if _is_here(config) else f"{ROOT}/{config}", overrides)
    name = args.name or re.sub(r"[^a-z0-9]+", "-", pathlib.Path(folder).name.lower())
    if not NAME.fullmatch(name):
        raise errors.UsageError(
            f"--name={name}: use a-z, 0-9 and -, a letter first, 40 characters at most."
        )
    given = {name: args[name].serialize() for name in args if args[name].present}
    given = ({"devices": f"--devices={devices}"} if devices else {}) | given
    known = [name for name in cli.define(_flags_of(command)) if name not in OWN]
    arguments = [given[name] for name in known if name in given]
    arguments += [f"--config.{key}={text}" for key, text in overrides.items()]
    record = {"id": now(), "place": place, "argv": sys.argv, command: arguments}
    record |= {"git": git_state(), "versions": versions()}
    if command != "train":
        arguments.insert(0, f"--command={command}")
    return Launch(name, command, pathlib.PurePosixPath(folder), tuple(arguments), record)


def _is_here(config: str) -> bool:
    """Whether there is such a file, recipe or run."""
    return bool(recipes.find(config.partition(":")[0])) or record_lib.Record(config).exists()


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
