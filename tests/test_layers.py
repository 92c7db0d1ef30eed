"""The order of the house, read from the imports (docs: imports run only downward)."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ldm_jax"

# The packages of ours from the ground up: a package may import those of the lines above its own.
# Packages of one line do not know one another.
ORDER = (
    ("base",),
    ("nn", "diffusion", "data"),
    ("models", "scenes"),
    ("stages", "metrics", "weights"),
    ("engine",),
    ("runs",),
    ("jobs",),
    ("evaluation",),
    ("training",),
    ("cost",),
    ("reports",),
    ("sweeps",),
    ("shell",),
)
# What lies right under ldm_jax/: the package itself, what commands share, and the commands.
SHARED = ("__init__", "__main__", "cli")
COMMANDS = (
    *("train", "encode", "sample", "edit", "evaluate", "adherence", "convert", "sweep"),
    *("plan", "bench", "doctor", "check_data", "prepare_data", "report", "compare"),
    *("demo", "list", "completion"),
)
MOST_LINES = 70  # of a command: its flags and one call

OPTIONAL = {"tensorflow", "torch", "torchvision", "tensorflow_cpu", "diffusers", "gradio"}
OPTIONAL |= {"wandb", "trackio", "webdataset"}


def files():
    return sorted(PACKAGE.rglob("*.py"))


def imported(body) -> list[tuple[int, str]]:
    """`[(line, dotted name)]` of all imports in `body`; `from a import b` counts as a.b."""
    found = []
    for node in body:
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: write imports absolute, from ldm_jax on"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def may_import(path) -> set[str]:
    """Names right under `ldm_jax` that the module at `path` may import beside its own package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    packages = [name for line in ORDER for name in line]
    if len(parts) > 1:
        level = next(i for i, line in enumerate(ORDER) if parts[0] in line)
        return {parts[0]}.union(*ORDER[:level])
    return {*packages, *SHARED} if parts[0] in (*COMMANDS, "__main__") else {*packages}


def test_every_package_has_its_place_in_the_order():
    found = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    ordered = {name for line in ORDER for name in line}
    assert found == ordered, (
        f"{found ^ ordered}: a package has its place in ORDER of {__file__}, and a word in the "
        "map in docs/concepts.md."
    )


def test_at_the_top_stand_the_commands_and_what_they_share():
    found = {path.stem for path in PACKAGE.glob("*.py")}
    assert found == {*SHARED, *COMMANDS}, (
        f"{found ^ {*SHARED, *COMMANDS}}: right under ldm_jax/ stand commands alone; a library "
        "belongs into one of its packages."
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_flags_and_one_call(name):
    lines = (PACKAGE / f"{name}.py").read_text().splitlines()
    assert len(lines) <= MOST_LINES, (
        f"{name}.py has {len(lines)} lines, more than {MOST_LINES}: a command turns flags into one "
        "call of a library, where its work belongs."
    )


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_only_downward(path):
    allowed = may_import(path)
    for line, name in imported(ast.walk(ast.parse(path.read_text()))):
        root, _, rest = name.partition(".")
        assert root not in ("configs", "launch"), f"{path}:{line}: a wheel holds ldm_jax alone"
        if root != "ldm_jax":
            continue
        target = rest.split(".")[0] or "__init__"
        assert target in allowed, (
            f"{path.relative_to(ROOT)}:{line} imports {name}, which does not lie below it "
            f"(allowed: {', '.join(sorted(allowed))}). Take what you need as an argument, or move "
            "it down to the lowest package that uses it."
        )


def test_only_one_module_asks_for_the_stage():
    readers = {
        str(path.relative_to(PACKAGE))
        for path in files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr == "stage"
        and isinstance(node.ctx, ast.Load)
        if (isinstance(node.value, ast.Name) and node.value.id == "config")
        or (isinstance(node.value, ast.Attribute) and node.value.attr in ("config", "_config"))
    }
    assert readers <= {"runs/kinds.py"}, (
        f"config.stage is read in {sorted(readers)}: what a stage is, its kind says "
        "(runs/kinds.py)."
    )


def at_module_level(tree: ast.Module):
    """Statements that run on import: not those inside functions."""
    todo = list(tree.body)
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            todo += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_optional_packages_are_imported_where_they_are_used(path):
    for line, name in imported(at_module_level(ast.parse(path.read_text()))):
        assert name.split(".")[0] not in OPTIONAL, (
            f"{path.relative_to(ROOT)}:{line} imports {name} on import: move it into the function "
            "that needs it, with one line that names the pip command where it is missing."
        )


def test_import_ldm_jax_is_light_and_training_needs_neither_tensorflow_nor_torch():
    code = (
        "import sys, ldm_jax; light = set(sys.modules);"
        "from ldm_jax import train, sample, evaluate;"
        "from ldm_jax.runs import opened; from ldm_jax.training import session;"
        "print(*sorted(light & {'jax', 'flax', 'numpy', 'orbax', 'grain'}), '|',"
        f"*sorted(set(sys.modules) & {OPTIONAL!r}))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    heavy, optional = out.stdout.strip("\n").split("|")
    assert not heavy.split(), f"import ldm_jax imports {heavy}: import it where it is used."
    assert not optional.split(), f"the commands import {optional}: import it where it is used."
