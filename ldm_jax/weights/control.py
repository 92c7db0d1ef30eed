"""ControlNets as folders of diffusers' `ControlNetModel`, read and written.

Such a folder holds what a control learns: the copy of the UNet's encoder with the timestep's
embedding, and the network of the hint. Classes that are added to the timestep have a table in it,
too, which here is the base's.
"""

import numpy as np

from ldm_jax.base import errors
from ldm_jax.models import backbones
from ldm_jax.models.unet import UNet
from ldm_jax.weights import diffusers, folders, from_diffusers, rules, to_diffusers
from ldm_jax.weights import diffusers_config as translate
from ldm_jax.weights.foreign import defaults, refuse_unless

LOADER = "ControlNetModel"
CLASSES = "class_embedding.weight"
# What a UNet's config.json says of the half that a ControlNet lacks.
UP = ("up_block_types", "out_channels", "sample_size", "dropout")
# Keys of ControlNetModel's config that ask for what ours does not have.
ALONE = dict(global_pool_conditions=(False,), upcast_attention=(False,))
ALONE |= dict(encoder_hid_dim=(None,), projection_class_embeddings_input_dim=(None,))
ORDERS = ("rgb", "bgr")
# Arguments of our UNet that are alike where a ControlNet and its base fit; heads beside them.
ALIKE = ("width", "mult", "blocks", "transformer_depth", "cross_attention", "scale_shift")
ALIKE += ("groups", "eps", "sin_first", "freq_shift", "asymmetric")


def write(folder, config: dict, own: dict, base: dict):
    """Writes the ControlNet of a run.

    config: the run's, with its first stage's factor as "f"; own: what the run has learnt; base: the
    parameters of its base.

    Raises:
      UsageError: diffusers has no such network.
    """
    if not config["model"]["cross_attention"]:
        raise errors.UsageError(
            f"diffusers' {LOADER} is of a UNet with cross-attention alone "
            "(config.model.cross_attention): this control cannot be exported."
        )
    given = dict(config["conditioners"])
    label = next(label for label in given if given[label]["name"] == "control")
    kwargs = given.pop(label)
    if told := [name for name in given if given[name]["name"] == "scalar"]:
        raise errors.UsageError(
            f"diffusers' {LOADER} is told no guidance (config.conditioners.{told[0]}): this run "
            "cannot be exported."
        )
    about = to_diffusers.unet_config(config | {"conditioners": given}, base["unet"])
    about = {key: value for key, value in about.items() if key not in UP} | {
        "_class_name": LOADER,
        "conditioning_channels": kwargs.get("channels", 3),
        "conditioning_embedding_out_channels": list(kwargs["widths"]),
        "controlnet_conditioning_channel_order": "rgb",
    }
    state = rules.export(own, table(config["model"], label, kwargs["widths"]))
    if (classes := _classes(given, base)) is not None:
        state[CLASSES], about["num_class_embeds"] = classes, len(classes)
    to_diffusers.write_model(folder, about, state)


def read(folder, config: dict, base: dict, label: str) -> tuple[dict, tuple]:
    """(the keys of the control's conditioner, (state, table, ignored keys) for rules.convert).

    folder: or its public name. config: the base run's, with its first stage's factor as "f"; base:
    its parameters; label: of the conditioner.

    Raises:
      UsageError: a control of another network.
    """
    folder = from_diffusers.local(folder)
    about = folders.read_json(folder / "config.json")
    name = about.get("_class_name")
    if name != LOADER:
        raise errors.UsageError(f"{folder}: class {name!r} is no control; {LOADER} is one.")
    refuse_unless(about, name, **ALONE, controlnet_conditioning_channel_order=ORDERS)
    ups = [kind.replace("Down", "Up") for kind in reversed(about["down_block_types"])]
    unet = {"_class_name": "UNet2DConditionModel", "up_block_types": ups}
    _check_fits(folder, translate.unet_model(about | unet), config["model"])
    state, order = (
        from_diffusers.weights(folder),
        about.get("controlnet_conditioning_channel_order"),
    )
    if CLASSES in state:
        wanted, found = _classes(config["conditioners"], base), state.pop(CLASSES)
        if wanted is None or not np.array_equal(wanted, found):
            raise errors.UsageError(
                f"{folder} has a class embedding that is not its base's: it is of another base."
            )
    widths = tuple(about.get("conditioning_embedding_out_channels") or (16, 32, 96, 256))
    if 2 ** (len(widths) - 1) != config["f"]:
        raise errors.UsageError(
            f"{folder} brings hints to latents of f={2 ** (len(widths) - 1)}, and the base's first "
            f"stage shrinks by f={config['f']}: it is of another base."
        )
    channels = about.get("conditioning_channels", 3)
    kwargs = dict(name="control", width=about["block_out_channels"][0], widths=widths)
    rows = table(config["model"], label, widths)
    if order == "bgr":  # ours are always handed red first
        rows = [r._replace(reorder=_reversed) if r.key == _FIRST else r for r in rows]
    return kwargs | {"channels": channels}, (state, rows, ())


def table(model: dict, label: str, widths) -> list[rules.Rule]:
    """The table of a ControlNet. model: our config.model; label: of the control's conditioner."""
    halves, levels = range(2 * (len(widths) - 1)), range(len(model["mult"]))
    skips = 1 + sum(model["blocks"] + (level < levels[-1]) for level in levels)
    hint = [
        *(rules.Rule(f"conv_{end}", f"conv_{end}", "conv") for end in ("in", "out")),
        *(rules.Rule(f"blocks.{i}", f"conv_{i}", "conv") for i in halves),
    ]
    own = [
        *diffusers.encoder_table(model),
        *(rules.Rule(f"controlnet_down_blocks.{i}", f"zero_{i}", "1x1") for i in range(skips)),
        rules.Rule("controlnet_mid_block", "zero_mid", "1x1"),
    ]
    places = [("controlnet_cond_embedding.", f"conditioners_{label}/")]
    return rules.within(places, hint) + rules.within([("", f"unet/{backbones.CONTROL}/")], own)


_FIRST = "controlnet_cond_embedding.conv_in"
_reversed = lambda array: array if array.ndim == 1 else array[:, ::-1]  # of a kernel's inputs


def _classes(conditioners: dict, base: dict):
    """The table of classes that are added to the timestep; None without one."""
    added = [
        label
        for label, own in sorted(conditioners.items())
        if own["name"] == "class" and own.get("place") == "vector"
    ]
    return np.asarray(base[f"conditioners_{added[0]}"]["table"]["embedding"]) if added else None


def _check_fits(folder, theirs: dict, ours: dict):
    """Raises UsageError unless a ControlNet's UNet is the base's."""
    theirs, ours = (defaults(UNet) | dict(model) for model in (theirs, ours))
    said = lambda model: {key: model[key] for key in ALIKE} | {
        "mult": tuple(model["mult"]),
        "attention": tuple(sorted(f for f in model["attention"] if f < 2 ** len(model["mult"]))),
        "heads": _heads(model),
    }
    theirs, ours = said(theirs), said(ours)
    if wrong := [key for key in theirs if theirs[key] != ours[key]]:
        raise errors.UsageError(
            f"{folder} is a control of another UNet: {wrong[0]}={theirs[wrong[0]]} there and "
            f"{ours[wrong[0]]} in the base."
        )


def _heads(model: dict) -> tuple:
    """The heads of each level."""
    widths = [model["width"] * m for m in model["mult"]]
    if each := model["head_channels"]:
        return tuple(width // each for width in widths)
    heads = model["heads"]
    return tuple(heads) if isinstance(heads, (tuple, list)) else (heads,) * len(widths)
