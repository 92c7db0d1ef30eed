"""How a run's config differs from a recipe, its own or the nearest one."""

import pathlib

from ldm_jax.base import config as config_lib
from ldm_jax.base import errors, recipes
from ldm_jax.runs import keys

ABSENT = "-"


def nearest(config) -> tuple[str, list[tuple]]:
    """(name of the recipe that differs in the fewest keys, the differences); "" without any.

    Which recipe a run was started with is not recorded: its config.json holds every value.
    """
    found = {}
    for name, recipe in _all():
        if recipe.get("stage") == config.get("stage"):
            found[name] = difference(recipe, config)
    name = min(found, key=lambda name: len(found[name]), default="")
    return name, found.get(name, [])


def difference(*configs) -> list[tuple]:
    """[(key, value in each config), ...] of the keys that are not the same in all.

    ABSENT stands for a key that a config lacks. An option that it leaves out has its default.
    """
    every = [config_lib.flat(config_lib.plain(_complete(config))) for config in configs]
    keys = sorted({key for config in every for key in config})
    rows = [(key, *(config.get(key, ABSENT) for config in every)) for key in keys]
    return [row for row in rows if any(value != row[1] for value in row[2:])]


def _complete(config):
    """As a run records it; as it is where it names what is not registered here."""
    try:
        return keys.complete(config)
    except (errors.UsageError, AttributeError):
        return config


def _all():
    """(name with variant, config) of all recipes that need no run."""
    here = pathlib.Path(recipes.FOLDER)
    for name, file in (recipes.names() | recipes.names(here)).items():
        for variant in [v for v in recipes.variants(file) if v != "..."] or [""]:
            spec = f"{name}:{variant}".rstrip(":")
            try:
                yield spec, config_lib.load(spec)
            except errors.UsageError:
                continue  # it wants a run, or is somebody's unfinished work
