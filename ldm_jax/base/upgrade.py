"""Reads runs of earlier versions as if today's program had written them.

Only this module knows the past; config.json and checkpoints are read through it. A key that a run
lacks is filled in with the value that means what the program did when it had no such key, and
parameters that have been renamed are found under their old names.
"""

from ldm_jax.base import config as config_lib

PREFIX = "conditioners_"  # of the parameters of a denoiser's conditioners; their label follows

# {a key: newer keys of the same group, with the values that mean what was done without them}
LEARNT = {
    "seed": dict(init_from="", plugins=[], offload=False)
    | dict(max_loss_spike=0.0, max_rollbacks=0, check_replicas=0),
    "data.source": dict(label_field="label", combinations="", relations=False, vocabulary=""),
    "eval.records": dict(metrics=[], features="", weights="", samples=0, every=0),
    "limits.step": dict(stuck=0),
    "mesh.data": dict(spatial=1, tensor=1),
    "model.bottleneck": dict(name="autoencoder"),
    "model.codebook_size": dict(shortcut=""),
    "model.transformer_depth": dict(name="unet", attention_kernel="xla"),
    "model.groups": dict(norm_kernel="xla", remat_saves=""),
    "loss.kl_weight": dict(pixel_loss="l1", restart=0, perceptual_crop=0, decoder_only=False)
    | dict(terms=dict(halved=0.0, turned=0.0), disc_terms=dict(r1=0.0, lecam=0.0)),
    "loss.weight": dict(gamma=5.0),
    "latents.scale": dict(cache=""),
    "process.schedule": dict(density="uniform"),
    "sample.sampler": dict(rho=7.0, rule="linear", clip=0.0, tile=0),
}


def config(saved: dict) -> dict:
    """The config of a run of any version, as one of today would have been written."""
    for key, learnt in LEARNT.items():
        place, _, name = key.rpartition(".")
        group = saved.get(place, {}) if place else saved
        if name in group:
            for name, value in learnt.items():
                own = group.setdefault(name, value)
                if isinstance(value, dict):
                    group[name] = value | own
    for group, name in ((saved, "plugins"), (saved.get("eval", {}), "metrics")):
        if isinstance(group.get(name), str):  # words with commas between them, once
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
    if isinstance(tree, (tuple, list)):
        values = [renamed(value, names) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    return tree


def numbered(tree, labels):
    """Conditioners' parameters under their old names, of which runs and jobs recorded digests."""
    return renamed(tree, {new: old for old, new in parameter_names(labels).items()})
