"""Reads runs of earlier versions. No other module knows the earlier formats.

A run's config.json and its checkpoints are read through here. A config key that was added since
gets the value that reproduces the earlier behaviour, and parameters that were renamed since are
found under their old names.
"""

from ldm_jax.base import config as config_lib

PREFIX = "conditioners_"  # of the parameters of a denoiser's conditioners; their label follows

# {an old key: the keys beside it that were added later, with values of the earlier behaviour}
ADDED = {
    "seed": dict(init_from="", init_grow=False, plugins=[], offload=False)
    | dict(max_loss_spike=0.0, max_rollbacks=0, check_replicas=0)
    | dict(track=dict(name="", project="ldm_jax", entity="")),
    "latents": dict(
        distil=dict(method="", teacher="", guidance=0.0, weaker="")
        | dict(intervals=50, first=8, huber=1e-3)
    ),
    "distil": dict(adapt=dict(name="", base="", rank=8, alpha=0.0, targets=["attn"])),
    "adapt.name": dict(keep="", keep_weight=3.0),
    "distil.huber": dict(calls=[1, 2, 4], critic_steps=5, critic_first=100),
    "data.source": dict(label_field="label", combinations="", relations=False, vocabulary="")
    | dict(caption_field="", image_field="", mix={}, bucket_cache=32.0, crop_least=1.0),
    "eval.records": dict(metrics=[], features="", weights="", samples=0, every=0),
    "checkpoints.keep": dict(snapshots=0),
    "limits.step": dict(stuck=0),
    "mesh.data": dict(spatial=1, tensor=1),
    "model.bottleneck": dict(name="autoencoder", attention_kernel="xla"),
    "model.codebook_size": dict(shortcut="", patch=1, fold=1),
    "model.transformer_depth": dict(name="unet", attention_kernel="xla"),
    "model.conv_out": dict(position_std=0.02),
    "model.groups": dict(norm_kernel="xla", remat_saves=""),
    "discriminator": dict(encoder=""),
    "loss.kl_weight": dict(pixel_loss="l1", restart=0, perceptual_crop=0, latent_noise=0.1)
    | dict(terms=dict(halved=0.0, turned=0.0), disc_terms=dict(r1=0.0, lecam=0.0)),
    "loss.weight": dict(gamma=5.0, cap=400.0, logvar_features=0)
    | dict(terms=dict(thumbnail=0.0, coarse=0.0)),
    "latents.scale": dict(cache="", per_channel=False, mean=[], std=[]),
    "process.schedule": dict(density="uniform", density_shift=1.0)
    | dict(density_mean=0.0, density_std=1.0),
    "sample.sampler": dict(rho=7.0, shift=1.0, rule="linear", clip=0.0, tile=0),
}


def config(saved: dict) -> dict:
    """The config of a run of any version, with the keys of today."""
    for key, added in ADDED.items():
        place, _, name = key.rpartition(".")
        group = saved.get(place, {}) if place else saved
        if name in group:
            group.update(added | group)
    for group, name in ((saved, "plugins"), (saved.get("eval", {}), "metrics")):
        if isinstance(group.get(name), str):  # it was once a string of names with commas
            group[name] = list(config_lib.names(group[name]))
    if saved.get("loss", {}).pop("decoder_only", False):  # of the run that it began from
        saved["encoder"] = saved["init_from"]
    for player in saved.get("optim", {}).values():
        player.setdefault("average", "ema")
    return saved


def parameter_names(labels) -> dict[str, str]:
    """{old name: new name} of the conditioners' parameters.

    They were once numbered in the order of the labels, so that a further label could rename others.
    """
    names = {f"{PREFIX}{i}": f"{PREFIX}{label}" for i, label in enumerate(sorted(labels))}
    return {old: new for old, new in names.items() if old not in names.values()}


def renamed(tree, names: dict[str, str]):
    """A nested state in which the keys of all dicts are renamed."""
    if isinstance(tree, dict):
        return {names.get(key, key): renamed(value, names) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        values = [renamed(value, names) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    return tree


def numbered(tree, labels):
    """The tree under the old names of conditioners, which digests of earlier runs were taken of."""
    return renamed(tree, {new: old for old, new in parameter_names(labels).items()})
