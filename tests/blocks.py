"""The blocks of code in the pages: what a shell would call in them, and whether it would be taken.

A shell reads the blocks with functions in the place of the programs, so that its variables, loops
and quotes are its own; each call is then given to the parser of the command's flags, and to the
loader of recipes. A block that holds something else is marked with the reason, above it:

    <!-- not run: needs TensorFlow -->
"""

import dataclasses
import importlib
import importlib.util
import json
import pathlib
import re
import subprocess
import tomllib

from packaging import requirements

from ldm_jax import cli
from ldm_jax.base import config as config_lib
from ldm_jax.base import record as record_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
BLOCK = re.compile(r"(?:^<!-- not run: (.+?) -->\n)?^( *)```(\S*)\n(.*?)^\2```", re.M | re.S)
INLINE = re.compile(r"`python -m ((?:ldm_jax|launch)\.\w+)([^`]*)`")
# Programs in their places: each writes down how it was called.
SHELL = r"""
called() { local IFS=$'\x1f'; printf '%s\n' "$*" >> "$CALLS"; }
for program in python ldm pip bash pytest; do eval "$program() { called $program \"\$@\"; }"; done
taskset() { "${@:3}"; }
command_not_found_handle() { called unknown "$@"; }
"""
# Runs that the pages take as given, and the configs of such.
RUNS = {
    **dict.fromkeys(("BASE", "TEACHER", "LDM"), "debug:ldm"),
    **dict.fromkeys(("RUN", "FIRST"), "debug:first_stage"),
    "runs/quickstart/first_stage": "quickstart:first_stage",
    "runs/quickstart/ldm": "quickstart:ldm",
    "runs/tasks/text": "tasks:text",
}


@dataclasses.dataclass(frozen=True)
class Block:
    """where: page and line; language: of the fence; reason: why it is not run, where it is not."""

    where: str
    language: str
    text: str
    reason: str | None


def blocks(page: pathlib.Path) -> list[Block]:
    text = page.read_text()
    line = lambda match: text[: match.start(3)].count("\n") + 1
    name = page.relative_to(ROOT)
    return [Block(f"{name}:{line(m)}", m[3], m[4], m[1]) for m in BLOCK.finditer(text)]


def calls(block: Block, folder: pathlib.Path) -> list[list[str]]:
    """[program, argument, ...] of each call that a shell makes of a block, in an empty folder."""
    text = block.text.replace(".venv/bin/", "").replace("/usr/bin/time -v ", "")
    record = folder / "calls"
    record.write_text("")
    for own in (".local/share/bash-completion/completions", ".zfunc"):
        (folder / own).mkdir(parents=True, exist_ok=True)
    argv = ["/bin/bash", "--noprofile", "--norc", "-c", SHELL + text]
    env = {"PATH": "/nowhere", "CALLS": str(record), "HOME": str(folder)}
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True)
    if not block.reason:
        assert not done.stderr, f"{block.where}: {done.stderr}"
    return [line.split("\x1f") for line in record.read_text().splitlines()]


def lay_out(folder: pathlib.Path):
    """What commands of the pages find: recipes, and the runs that are taken as given."""
    (folder / "configs").mkdir()
    for file in (ROOT / "configs").glob("*"):
        (folder / "configs" / file.name).symlink_to(file)
    (folder / "configs" / "NAME.py").symlink_to(ROOT / "configs" / "photos.py")
    for run, recipe in RUNS.items():
        config = record_lib.load(recipe)
        if config.get("first_stage") == "":  # a second stage that was trained has one
            config.first_stage = "identity"
        _write_run(folder / run, config)


def _write_run(run: pathlib.Path, config):
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps(config_lib.plain(config)))


def check(argv: list[str]):
    """Raises for a call that would be refused for what it says; a training leaves a config."""
    program, *rest = (word for word in argv if word not in ("...", "[PREFIX"))
    if program == "python" and rest[:2] == ["-m", "pytest"]:
        program, rest = "python", [word for word in rest[2:] if word.startswith("tests")]
    if program == "python" and rest[0] == "-m":
        return _command(rest[1], rest[2:])
    if program == "ldm":
        return rest == ["--help"] or _command(f"ldm_jax.{rest[0]}", rest[1:])
    if program == "pip":
        return _installable(rest)
    file = ROOT / rest[0].partition("::")[0]
    assert program != "unknown", f"{argv}: mark the block, as <!-- not run: REASON -->"
    assert file.exists(), f"{argv}: {file} is not there"
    if "\nFLAGS = " in file.read_text() if file.suffix == ".py" else False:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
        _flags(module, rest[1:])


def _command(name: str, argv: list[str]):
    if "--help" in argv:
        return
    args, overrides = _flags(importlib.import_module(name), argv)
    given = lambda flag: args[flag].value if flag in args else None
    recipe = args["config"].parser if "config" in args else None
    if given("config") not in (None, "", "...") and isinstance(recipe, cli.Recipe):
        config = record_lib.load(given("config"), overrides)
        if name == "ldm_jax.train":
            _write_run(pathlib.Path(given("workdir")), config)
    if given("sweep"):
        config_lib.load(given("sweep"), overrides, "--sweep")
    if name == "ldm_jax.convert" and given("out") and not pathlib.Path(given("out")).exists():
        _write_run(pathlib.Path(given("out")), record_lib.load("debug:ldm"))


def _flags(module, argv):
    argv, verbs = list(argv), getattr(module, "VERBS", None)
    assert not verbs or argv.pop(0) in verbs, argv
    argv = cli.named(argv, getattr(module, "WORDS", ""))
    args = cli.define(module.FLAGS, argv)
    return args, cli.parse(args, argv)


def _installable(argv: list[str]):
    """What `pip install` is told is this project, its lock, or what it declares or mentions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    known = [*project["dependencies"], *(line for lines in optional.values() for line in lines)]
    known = {requirements.Requirement(line).name for line in known} | {"libtpu", "ldm-jax"}
    for word in argv[1:]:
        if word.startswith(".["):
            assert {*word[2:-1].split(",")} <= {*optional}, word
        elif not word.startswith("-") and not (ROOT / word).exists():
            assert requirements.Requirement(word).name in known, word
