"""The order of the house, read from the imports (docs: imports run only downward)."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ldm_jax"
ENTRY = "entry points"

# What each package of ours may import. The files right under ldm_jax/ are the entry points.
MAY_IMPORT = {"base": set()}
MAY_IMPORT |= {name: {"base"} for name in ("nn", "diffusion", "data")}
MAY_IMPORT["models"] = {"base", "nn", "diffusion", "data"}
MAY_IMPORT |= {name: MAY_IMPORT["models"] | {"models"} for name in ("stages", "metrics", "weights")}
MAY_IMPORT["engine"] = MAY_IMPORT["stages"] | {"stages", "metrics", "weights"}
MAY_IMPORT["jobs"] = MAY_IMPORT["engine"] | {"engine"}
MAY_IMPORT["report"] = {"base", "engine"}
MAY_IMPORT[ENTRY] = MAY_IMPORT["jobs"] | {"jobs", "report", ENTRY}

OPTIONAL = {"tensorflow", "torch", "torchvision", "tensorflow_cpu", "diffusers", "wandb", "gradio"}


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


def layer(dotted: str) -> str:
    """`ldm_jax.engine.loop` -> `engine`; `ldm_jax.train` -> the entry points."""
    part = [*dotted.split("."), ""][1]
    return part if part in MAY_IMPORT else ENTRY


def test_every_package_has_its_place_in_the_order():
    found = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert found <= MAY_IMPORT.keys(), (
        f"{found - MAY_IMPORT.keys()}: new packages get a place in MAY_IMPORT of {__file__}, "
        "and a word in the README's map."
    )


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_only_downward(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    own = layer(".".join(parts))
    for line, name in imported(ast.walk(ast.parse(path.read_text()))):
        if name.split(".")[0] != "ldm_jax":
            continue
        target = layer(name)
        assert target == own or target in MAY_IMPORT[own], (
            f"{path.relative_to(ROOT)}:{line} imports {name}: {own} may only import itself and "
            f"{sorted(MAY_IMPORT[own]) or 'nothing of ours'}. Take what you need as an argument "
            "(build.py connects layers), or move it down to the lowest layer that uses it."
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
        "from ldm_jax import build, run, train, sample, evaluate;"
        "print(*sorted(light & {'jax', 'flax', 'numpy', 'orbax', 'grain'}), '|',"
        f"*sorted(set(sys.modules) & {OPTIONAL!r}))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    heavy, optional = out.stdout.strip("\n").split("|")
    assert not heavy.split(), f"import ldm_jax imports {heavy}: import it where it is used."
    assert not optional.split(), f"the commands import {optional}: import it where it is used."
