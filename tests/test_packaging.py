"""What the product declares is true: its dependencies, no more and no less, and its version."""

import ast
import importlib.metadata
import pathlib
import re
import sys
import tomllib

import yaml
from packaging import requirements

import ldm_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"ldm_jax", "launch", "configs"}
# Needed though nothing here imports it, because:
INDIRECT = {
    "flatbuffers": "jax.export serialises programs with it",
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


def test_the_lock_holds_exact_versions_of_the_tested_set_and_no_addresses():
    text = (ROOT / "requirements-3.12.lock").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    locked = {normal(line.partition("==")[0].partition("[")[0]): line for line in lines}
    assert all(re.fullmatch(r"[\w.\[\]-]+==[\w.+!]+", line) for line in lines)
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        wanted = requirements.Requirement(line) if line and line[0] != "#" else None
        if wanted and (not wanted.marker or wanted.marker.evaluate({"python_version": "3.12"})):
            version = locked[normal(wanted.name)].partition("==")[2]
            assert wanted.specifier.contains(version), f"{line}: the lock has {version}"


def test_the_version_is_one_in_all_places():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert ldm_jax.__version__ == cited == first
