"""`ldm`: its commands, the examples of their help, what a config may name, completion."""

import ast
import dataclasses
import functools
import importlib
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import compiling
import pytest
from test_layers import COMMANDS, files

from ldm_jax import cli
from ldm_jax.base import config as config_lib
from ldm_jax.base import errors, recipes
from ldm_jax.base import record as record_lib
from ldm_jax.shell import commands, completion, registries
from ldm_jax.stages.sampling import Sampling

ROOT = pathlib.Path(__file__).resolve().parent.parent
PYTHON = "python -m ldm_jax."
READ = ("run", "runs", "samples", "images", "decoder")  # flags that name what another command wrote
WRITTEN = ("workdir", "out")
# These have no example that works in an empty folder: they read what others published.
READS_OTHERS_FILES = ("prepare_data", "convert")


def module(name):
    return importlib.import_module(f"ldm_jax.{name}")


def examples(name, here=False) -> list[list[str]]:
    """[command, argument, ...] of each line of its docstring that is to work as it stands.

    Others hold a PLACEHOLDER, `...` or alternatives. here: without what `# wants` a package.
    """
    text = module(name).__doc__.replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith(f"    {PYTHON}")]
    lines = [line for line in lines if not (here and "# wants" in line)]
    found = [shlex.split(line.removeprefix(PYTHON), comments=True) for line in lines]
    values = lambda argv: "".join(argument.partition("=")[2] for argument in argv)
    open_ = lambda argv: any(c.isupper() or c in "[|" for c in values(argv)) or "..." in str(argv)
    return [argv for argv in found if not open_(argv)]


ALL = {name: examples(name) for name in COMMANDS}


def test_every_command_has_one_line_in_the_help_and_the_help_needs_no_jax():
    code = (
        "import sys; from ldm_jax import __main__ as ldm, cli, completion;"
        "sys.argv = ['ldm']; ldm.main(); completion.main('bash', None, {});"
        "assert 'jax' not in sys.modules"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    for name in COMMANDS:
        (line,) = [line for line in out.stdout.splitlines() if line.startswith(f"  {name} ")]
        assert 20 < len(line) <= 82, f"{name}: its docstring begins with one short sentence"


def test_a_command_that_is_not_there_is_one_line_with_the_nearest():
    argv = [sys.executable, "-m", "ldm_jax", "trian", "--config=x"]
    out = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 2 and not out.stdout
    assert len(out.stderr.splitlines()) == 1 and "did you mean 'train'?" in out.stderr


@pytest.mark.parametrize("name", sorted({*COMMANDS} - {*READS_OTHERS_FILES}))
def test_the_examples_of_a_command_fit_its_flags_and_one_another(name):
    written = {
        value
        for other in ALL.values()
        for argv in other
        for flag, _, value in (argument.partition("=") for argument in argv)
        if flag.lstrip("-") in WRITTEN
    }
    assert ALL[name], f"{name}: no line of its docstring works as it stands"
    for command, *argv in ALL[name]:
        verbs = getattr(module(command), "VERBS", None)
        assert not verbs or argv.pop(0) in verbs
        argv = cli.named(argv, getattr(module(command), "WORDS", ""))
        args = cli.define(module(command).FLAGS, argv)
        overrides = cli.parse(args, argv)
        for flag in READ:
            value = args[flag].value if flag in args else None
            for read in value if isinstance(value, list) else [value] if value else []:
                assert any(read == w or read.startswith(f"{w}/") for w in written), read
        if "config" in args and args.config:
            record_lib.load(args.config, overrides)
        if "sweep" in args:
            config_lib.load(args.sweep, overrides, "--sweep")


@pytest.mark.slow
def test_the_examples_work_as_they_stand(tmp_path):
    order = dict.fromkeys(["train", "sample", *COMMANDS])
    order = [name for name in order if name not in READS_OTHERS_FILES]
    for argv in (argv for name in order for argv in examples(name, here=True)):
        player = "autoencoder" if "quickstart:first_stage" in str(argv) else "denoiser"
        short = ["steps.total=4", "steps.eval=4", f"optim.{player}.warmup=1"]
        short = [f"--config.{key}" for key in short * (argv[0] == "train")]
        line = [sys.executable, "-m", "ldm_jax", *argv, *short]
        env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": compiling.FAST}
        out = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert out.returncode == 0, (argv, out.stderr[-2000:])


# What a config may name


def test_every_registry_is_listed_under_a_key_that_there_is():
    internal = {"READERS", "RESIZES"}  # of feature extractors, no choice of a config
    defined = {
        f"{'.'.join(path.relative_to(ROOT / 'ldm_jax').with_suffix('').parts)}:{target.id}"
        for path in files()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        if ast.unparse(node.value.func).split(".")[-1] == "Registry"
        for target in node.targets
        if target.id not in internal
    }
    assert defined == {place for _, place in registries.REGISTRIES.values()}
    stages = [config_lib.load(f"debug:{name}") for name in ("first_stage", "ldm")]
    for key, _ in registries.REGISTRIES.values():
        if " " in key or key == "prepare_data":
            continue
        for player, label in (("autoencoder", "class"), ("denoiser", "class")):
            said = key.replace("PLAYER", player).replace("conditioners.LABEL", "conditioners")
            assert key.startswith("conditioners") or any(_has(c, said) for c in stages), (
                key,
                label,
            )


def _has(config, key) -> bool:
    try:
        config_lib.find(config, key)
    except errors.UsageError:
        return False
    return True


def test_a_list_has_every_name_and_says_what_it_is(capsys):
    registry = registries.of("samplers")[1]
    found = registries.entries("samplers")
    assert [*found] == registry.names() and "eq. 12" in found["ddim"]
    assert cli.run("", module("list").FLAGS, module("list").main, ["recipes"], ("recipes",)) == 0
    out = capsys.readouterr().out
    assert all(f"  {file.stem} " in out for file in (ROOT / "configs").glob("[klv]*.py"))


@pytest.mark.parametrize("under", ["", "sweeps"])
def test_variants_that_are_read_from_the_source_are_those_that_there_are(under):
    for name, file in recipes.names(under=under).items():
        if (known := recipes.variants(file)) and "..." not in known:
            with pytest.raises(errors.UsageError, match=f"known: {', '.join(known)}"):
                config_lib.load(f"{name}:?")


# A recipe by name


def test_a_name_is_a_recipe_here_or_else_of_ours_and_then_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    ours = record_lib.load("kl_f4")
    assert record_lib.load("configs/kl_f4.py") == ours
    saved = config_lib.plain(ours) | {"seed": 7}
    for folder in ("runs/kl", "kl_f4"):
        pathlib.Path(folder).mkdir(parents=True)
        pathlib.Path(folder, "config.json").write_text(json.dumps(saved))
    assert record_lib.load("kl_f4") == ours, "a word that names both is the recipe"
    for run in ("./kl_f4", "kl_f4/config.json", "runs/kl", "runs/kl/"):
        assert record_lib.load(run, {"batch_size": "3"}).seed == 7, run
    pathlib.Path("configs").mkdir()
    own = "from configs import base\n\ndef get_config(arg=None):\n    config = base.first_stage()\n"
    pathlib.Path("configs/kl_f4.py").write_text(own + "    config.seed = 8\n    return config\n")
    assert record_lib.load("kl_f4").seed == record_lib.load("configs/kl_f4.py").seed == 8
    assert record_lib.load("kl_f8").stage == "autoencode"
    with pytest.raises(errors.UsageError, match="did you mean 'vq_f4_noattn'"):
        record_lib.load("vq_f4_noatn")


# Completion


@functools.cache
def script(shell: str) -> str:
    return completion.script(shell, {name: module(name) for name in COMMANDS})


def complete(line: str, folder=ROOT) -> list[str]:
    """What a real bash is offered behind `line`, split into words as readline splits it."""
    words = shlex.split(line) + [""] * line.endswith(" ")
    split = [part for word in words for part in _broken(word)]
    code = (
        f"{script('bash')}\nCOMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}\n"
        f"COMP_WORDS=({shlex.join(split)}) COMP_CWORD={len(split) - 1}\n"
        "_ldm; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    # The words at which readline breaks are set by an interactive shell alone.
    code = "COMP_WORDBREAKS=$' \\t\\n\"\\'><=;|&(:'\n" + code
    argv = ["bash", "--noprofile", "--norc", "-c", code]
    out = subprocess.run(argv, cwd=folder, capture_output=True, text=True)
    assert out.returncode == 0 and not out.stderr, out.stderr
    return [*dict.fromkeys(out.stdout.split())]


def _broken(word: str) -> list[str]:
    for mark in "=:":
        word = word.replace(mark, f"\n{mark}\n")
    return [part for part in word.split("\n") if part] or [""]


def test_completion_knows_commands_flags_keys_and_recipes(tmp_path):
    assert complete("ldm tr") == ["train"] and {*COMMANDS} <= {*complete("ldm ")}
    assert complete("ldm edit rec") == ["reconstruct"] and complete("ldm list samp") == ["samplers"]
    assert complete("ldm train --work") == ["--workdir="]
    assert complete("ldm sample --guid") == ["--guidance="]
    assert complete("ldm train --config.data.so") == ["--config.data.source="]
    assert complete("ldm encode --dtype=bf") == ["bfloat16"]
    assert complete("ldm train --config=kl_f1") == ["kl_f16", "kl_f16:c16", "kl_f16:c8"]
    assert complete("ldm train --config=quickstart:l") == ["ldm"], "what stands behind the colon"
    assert complete("ldm sweep --sweep=sweeps/obj")[0] == "sweeps/objectives"
    (tmp_path / "configs").mkdir()
    for name in ("mine.py", "base.py", "notes.txt"):
        (tmp_path / "configs" / name).touch()
    assert complete("ldm train --config=mi", tmp_path) == ["mine"]
    assert "base" not in complete("ldm train --config=", tmp_path)
    assert complete("ldm sample --run=conf", tmp_path) == ["configs"], "files elsewhere"
    assert complete("ldm report conf", tmp_path) == ["configs"]


def test_completion_knows_every_flag_and_the_samplers_without_importing_them():
    fields = [field.name for field in dataclasses.fields(Sampling) if "help" in field.metadata]
    assert cli.SAMPLING["sampling"].spelled("sampling") == [f"--{name}=" for name in fields]
    for name in COMMANDS:
        given = {word.strip("-=") for word in complete(f"ldm {name} --") if "config." not in word}
        assert given == {*cli.define(module(name).FLAGS), "help"}, name


@pytest.mark.skipif(not shutil.which("zsh"), reason="completion in zsh needs zsh")
def test_the_script_of_zsh_is_one():
    assert script("zsh").startswith("#compdef ldm\n")
    subprocess.run(["zsh", "-n"], input=script("zsh"), text=True, check=True)


def test_commands_are_all_files_but_what_they_share():
    assert {*commands.names()} == {*COMMANDS}
