"""Recipes by name: `kl_f4` is configs/kl_f4.py of the current folder, or else that of ldm_jax.

A folder configs/ of your own needs no __init__.py. Its files may say `from configs import base`,
and import one another in the same way.
"""

import ast
import pathlib
import sys

from ldm_jax.base import errors

FOLDER = "configs"
_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
# A wheel has the recipes inside the package, a checkout beside it.
_INSIDE = _PACKAGE / "recipes"
OURS = (_INSIDE if _INSIDE.is_dir() else _PACKAGE.parent) / FOLDER
LIBRARIES = ("base", "paper")  # what recipes are made of; none of them has a get_config


def find(path: str) -> pathlib.Path | None:
    """The file that `path` names: a file, NAME or configs/NAME.py; None where there is none."""
    if pathlib.Path(path).is_file():
        return pathlib.Path(path)
    if path.startswith((".", "/")):
        return None
    name = path.removeprefix(f"{FOLDER}/")
    name = name.removesuffix(".py") if name != path else name
    files = (folder / f"{name}.py" for folder in (pathlib.Path(FOLDER), OURS))
    return next((file for file in files if file.is_file()), None)


def names(folder: pathlib.Path = OURS, under: str = "") -> dict[str, pathlib.Path]:
    """{name: file} of the recipes in `folder`, sorted; under: of a folder in it, such as sweeps."""
    found = sorted((folder / under).glob("*.py"))
    found = [file for file in found if file.stem not in LIBRARIES and file.stem[0] != "_"]
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in found}


def nearest(path: str) -> str:
    """`; did you mean 'x'?` for a name or a file that is not there."""
    file = pathlib.Path(path)
    if file.suffix == ".py":
        return errors.nearest(path, map(str, file.parent.glob("*.py")))
    here = pathlib.Path(FOLDER)
    known = [*names(), *names(under="sweeps"), *names(here), *names(here, "sweeps")]
    return errors.nearest(path, known)


def make_importable(file: pathlib.Path):
    """Lets the recipe `file` say `from configs import base`, in whatever folder we are."""
    folders = file.resolve().parents
    root = str(next((p.parent for p in folders if p.name == FOLDER), folders[1]))
    if root not in sys.path:
        sys.path.insert(0, root)
    if str(OURS.parent) not in sys.path:
        sys.path.append(str(OURS.parent))


def sentence(file: pathlib.Path) -> str:
    """What a recipe's docstring begins with."""
    said = ast.get_docstring(ast.parse(file.read_text())) or ""
    return " ".join(said.partition("\n\n")[0].split())


def variants(file: pathlib.Path) -> list[str]:
    """The names that the recipe passes to `config.variants`; "..." stands for those it computes.

    They are read from the source: nothing is executed.
    """
    calls = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))
    for call in calls:
        if isinstance(call.func, ast.Attribute) and call.func.attr == "variants":
            return [keyword.arg or "..." for keyword in call.keywords]
    return []
