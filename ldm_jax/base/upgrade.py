"""Runs of earlier versions, told in today's words: nothing else in the program knows the past.

A run's config.json and its checkpoints are read through here. A key that the program has learnt
since is filled in with the value that means what the program did then, and parameters that have
been renamed since are found under the names that they had.
"""

from ldm_jax.base import config as config_lib

PREFIX = "conditioners_"  # of the parameters of a denoiser's conditioners; their label follows

# (key, what the program did before it had the key, a key beside it that tells where it belongs)
LEARNT = (
    ("init_from", "", "seed"),
    ("plugins", [], "seed"),
    ("offload", False, "seed"),
    ("max_loss_spike", 0.0, "seed"),
    ("max_rollbacks", 0, "seed"),
    ("check_replicas", 0, "seed"),
    ("data.label_field", "label", "data.source"),
    ("data.combinations", "", "data.source"),
    ("data.relations", False, "data.source"),
    ("data.vocabulary", "", "data.source"),
    ("eval.metrics", [], "eval.records"),
    ("eval.features", "", "eval.records"),
    ("eval.weights", "", "eval.records"),
    ("eval.samples", 0, "eval.records"),
    ("eval.every", 0, "eval.records"),
    ("limits.stuck", 0, "limits.step"),
    ("mesh.spatial", 1, "mesh.data"),
    ("mesh.tensor", 1, "mesh.data"),
    ("model.name", "autoencoder", "model.bottleneck"),
    ("model.name", "unet", "model.transformer_depth"),
    ("model.norm_kernel", "xla", "model.groups"),
    ("model.attention_kernel", "xla", "model.transformer_depth"),
    ("model.remat_saves", "", "model.groups"),
    ("loss.pixel_loss", "l1", "loss.kl_weight"),
    ("loss.terms", {}, "loss.kl_weight"),
    ("loss.gamma", 5.0, "loss.weight"),
    ("latents.cache", "", "latents.scale"),
    ("process.density", "uniform", "process.schedule"),
    ("sample.rho", 7.0, "sample.sampler"),
    ("sample.rule", "linear", "sample.sampler"),
    ("sample.clip", 0.0, "sample.sampler"),
    ("sample.tile", 0, "sample.sampler"),
)


def config(saved: dict) -> dict:
    """The config of a run of any version, as one of today would have been written."""
    for key, value, beside in LEARNT:
        group, name = _group(saved, key)
        if name not in group and beside.rpartition(".")[2] in _group(saved, beside)[0]:
            group[name] = value
    for key in ("plugins", "eval.metrics"):  # once a text with commas
        group, name = _group(saved, key)
        if isinstance(group.get(name), str):
            group[name] = list(config_lib.names(group[name]))
    for player in saved.get("optim", {}).values():
        player.setdefault("average", "ema")
    return saved


def parameter_names(labels) -> dict[str, str]:
    """{a conditioner's parameters under their old name: their name}.

    Conditioners were numbered in the order of their labels: one more could rename the others.
    """
    names = {f"{PREFIX}{i}": f"{PREFIX}{label}" for i, label in enumerate(sorted(labels))}
    return {old: new for old, new in names.items() if old not in names.values()}


def renamed(tree, names: dict[str, str]):
    """A nested state with the keys of its dicts renamed, wherever they stand."""
    if isinstance(tree, dict):
        return {names.get(key, key): renamed(value, names) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(renamed(value, names) for value in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(renamed(value, names) for value in tree)
    return tree


def _group(saved: dict, key: str) -> tuple[dict, str]:
    """The group that holds `key` (empty where there is none), and its name there."""
    *path, name = key.split(".")
    for part in path:
        saved = saved.get(part, {})
    return saved, name
