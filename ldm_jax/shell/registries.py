"""What a config or a flag may name, by the plural of its kind: the registries, and the recipes."""

import importlib
import inspect

from ldm_jax.base import recipes
from ldm_jax.base.registry import Registry

# {plural: (the key or flag that names an entry, module:REGISTRY)}; docs/extend.md adds entries.
REGISTRIES = {
    "sources": ("data.source", "data.sources:SOURCES"),
    "autoencoders": ("model", "models.autoencoder:AUTOENCODERS"),
    "bottlenecks": ("model.bottleneck", "models.bottleneck:BOTTLENECKS"),
    "shortcuts": ("model.shortcut", "models.shortcut:SHORTCUTS"),
    "pixel_losses": ("loss.pixel_loss", "stages.autoencode:PIXEL_LOSSES"),
    "disc_losses": ("loss.disc_loss", "stages.adversary:DISCRIMINATOR_LOSSES"),
    "terms": ("loss.terms", "stages.terms:TERMS"),
    "denoiser_terms": ("loss.terms", "stages.thumbnails:TERMS"),
    "disc_terms": ("loss.disc_terms", "stages.adversary:DISCRIMINATOR_TERMS"),
    "backbones": ("model", "models.backbones:BACKBONES"),
    "conditioners": ("conditioners.LABEL", "models.conditioners:CONDITIONERS"),
    "conditions": ("fields of conditioners", "data.conditions:MAKERS"),
    "degradations": ("conditioners.LABEL.degradation", "data.degradations:DEGRADATIONS"),
    "hints": ("conditioners.LABEL.hint", "data.hints:HINTS"),
    "holes": ("conditioners.LABEL.holes", "data.holes:KINDS"),
    "schedules": ("process.schedule", "diffusion.schedules:SCHEDULES"),
    "predictions": ("process.prediction", "diffusion.process:PREDICTIONS"),
    "densities": ("process.density", "diffusion.process:DENSITIES"),
    "weights": ("loss.weight", "diffusion.loss_weights:WEIGHTS"),
    "distances": ("loss.distance", "stages.diffuse:DISTANCES"),
    "distillations": ("distil.method", "stages.distil:METHODS"),
    "adapters": ("adapt.name", "stages.adapt:ADAPTERS"),
    "samplers": ("sample.sampler", "diffusion.methods:SAMPLERS"),
    "grids": ("sample.spacing", "diffusion.grids:GRIDS"),
    "guidances": ("sample.rule", "diffusion.guidance:GUIDANCES"),
    "optimizers": ("optim.PLAYER.name", "engine.optim:OPTIMIZERS"),
    "learning_rates": ("optim.PLAYER.schedule", "engine.optim:SCHEDULES"),
    "averages": ("optim.PLAYER.average", "engine.optim:AVERAGES"),
    "trackers": ("track.name", "engine.trackers:TRACKERS"),
    "stages": ("stage", "runs.kinds:KINDS"),
    "metrics": ("eval.metrics", "evaluation.suite:METRICS"),
    "features": ("eval.features", "metrics.features:EXTRACTORS"),
    "formats": ("sample --format", "jobs.outputs:FORMATS"),
    "annotations": ("prepare_data", "data.annotations:FORMATS"),
}
RECIPES = ("recipes", "sweeps")  # what --config= and --sweep= name
KINDS = (*RECIPES, *REGISTRIES)
# Modules that register entries of the registries of other modules.
REGISTERING = ("diffusion.samplers", "runs.first_stage", "runs.second_stage", "scenes.scenes")


def of(kind: str) -> tuple[str, Registry]:
    """The key that names an entry, and the registry, with all of its entries."""
    key, place = REGISTRIES[kind]
    module, _, name = place.partition(":")
    for other in (*REGISTERING, module):
        importlib.import_module(f"ldm_jax.{other}")
    return key, getattr(importlib.import_module(f"ldm_jax.{module}"), name)


def entries(kind: str) -> dict[str, str]:
    """{name: what it is} of all that a config may name."""
    if kind in RECIPES:
        found = recipes.names(under="" if kind == "recipes" else kind)
        return {name: of_recipe(file) for name, file in found.items()}
    registry = of(kind)[1]
    said = {name: sentence(registry.get(name)) for name in registry.names()}
    shared = len(said) > 1 and len(set(said.values())) == 1  # of their class, not their own
    return dict.fromkeys(said, "") if shared else said


def of_recipe(file) -> str:
    """What a recipe says of itself, and its variants."""
    variants = ", ".join(f":{name}" for name in recipes.variants(file))
    return f"{recipes.sentence(file)}{f' ({variants})' if variants else ''}"


def sentence(entry) -> str:
    """The first paragraph of its docstring; of an evaluation's metric, that of what it computes."""
    said = inspect.getdoc(getattr(entry, "compute", entry)) or ""
    return " ".join(said.partition("\n\n")[0].split())
