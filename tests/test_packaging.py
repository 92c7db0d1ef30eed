"""What the product declares that it needs is what it imports, no more and no less."""

import ast
import importlib.metadata
import pathlib
import re
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"ldm_jax", "launch", "configs"}
# Needed though nothing here imports it, because:
INDIRECT = {
    "flatbuffers": "jax.export serialises programs with it",
    "gcsfs": "etils opens gs:// with it",
}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def named(requirements) -> set[str]:
    return {normal(re.match(r"[\w.-]+", line)[0]) for line in requirements}


def imported() -> set[str]:
    """The packages that any of our files imports, at its top or within a function."""
    modules = set()
    for path in (path for folder in OURS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module.partition(".")[0])
    known = importlib.metadata.packages_distributions()
    foreign = modules - OURS - set(sys.stdlib_module_names)
    # An optional package that is not installed has the name of its module.
    return {normal(known.get(name, [name])[0]) for name in foreign}


def test_the_declared_dependencies_are_what_is_imported():
    extras = PROJECT["optional-dependencies"].values()
    optional = named(line for extra in extras for line in extra) - {"jax"}
    assert imported() - optional == named(PROJECT["dependencies"]) - INDIRECT.keys()


def test_the_tested_set_is_of_the_same_packages():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    tested = named(line for line in lines if not line.startswith("#"))
    assert tested == named(PROJECT["dependencies"])
