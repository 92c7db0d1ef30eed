"""Runs out: folders that diffusers' `from_pretrained` loads, with the same outputs.

Where diffusers has no such architecture, one UsageError says which part has no counterpart.
"""

import json
import pathlib

import numpy as np

from ldm_jax.base import errors
from ldm_jax.weights import diffusers, rules, text_encoders

WEIGHTS = "diffusion_pytorch_model.safetensors"
VERSION = "0.30.0"  # of diffusers, at least
SCHEDULES = {ours: theirs for theirs, ours in diffusers.SCHEDULES.items()}
PREDICTIONS = {ours: theirs for theirs, ours in diffusers.PREDICTIONS.items()}
AUTOENCODERS = {"kl": "AutoencoderKL", "vq": "VQModel"}  # by their bottleneck


def write_first_stage(folder, model, params, scale=1.0, size=None):
    """An AutoencoderKL or VQModel. params: the model's, as {"model": tree}."""
    config = autoencoder_config(model, scale, size)
    state = rules.export(params, diffusers.autoencoder_table(model))
    _write_model(folder, config, state)
    return config["_class_name"]


def write_second_stage(folder, config, params, first=None, scale=1.0) -> str:
    """A pipeline's folder: unet/, vae/ or vqvae/, scheduler/, conditioners, model_index.json.

    config: the run's. first: (its config's model, its params {"model": tree}), None for pixels.
    Returns the class to load it with.
    """
    unet = unet_config(config, channels := _channels(params))
    table, state = diffusers.unet_table(config["model"]), {"unet": params["unet"]}
    metadata, outside, clip = {}, [], None
    for label, kwargs in sorted(config["conditioners"].items()):
        path = f"conditioners_{label}"
        if kwargs["name"] == "class" and kwargs.get("place") == "vector":
            table = [*table, rules.Rule("class_embedding", f"{path}/table", "table")]
            state[path] = params[path]
            unet["num_class_embeds"] = len(params[path]["table"]["embedding"])
            metadata["null_class"] = "last"
        elif kwargs["name"] == "clip":
            clip = kwargs
        elif path in params:
            outside.append((label, kwargs, params[path]))
    writers = [_conditioner_writer(label, kwargs) for label, kwargs, _ in outside]
    _write_model(folder / "unet", unet, rules.export(state, table), metadata=metadata)
    encoder = text_encoders.write(folder, clip) if clip else {}
    for write, (_, kwargs, tree) in zip(writers, outside, strict=True):
        write(folder, kwargs, tree)
    scheduler = scheduler_config(config["process"], config["sample"]["spacing"])
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)

    parts = {
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", unet["_class_name"]],
    }
    slot = None
    if first:
        kl = AUTOENCODERS.get(first[0].get("bottleneck")) == "AutoencoderKL"
        slot = "vae" if config["model"]["cross_attention"] and kl else "vqvae"
        side = config["data"]["size"]
        kind = write_first_stage(folder / slot, *first, scale=scale, size=side)
        parts[slot] = ["diffusers", kind]
    pipeline = _pipeline(slot, unet, channels, config["conditioners"])
    if pipeline:
        nothing = {name: [None, None] for name in _ABSENT.get(pipeline, ())}
        index = {
            "_class_name": pipeline,
            "_diffusers_version": VERSION,
            **nothing,
            **parts,
            **encoder,
        }
        if pipeline == "StableDiffusionPipeline":
            index["requires_safety_checker"] = False
        _write_json(folder / "model_index.json", index)
    if pipeline == "StableDiffusionPipeline" and not encoder:
        return (
            f"{pipeline}, with prompt_embeds; text_encoder=None, tokenizer=None to from_pretrained"
        )
    return pipeline or "its parts, each by its own class"


# Arguments of a pipeline that a caller brings: embeddings go in as prompt_embeds.
_ABSENT = {
    "StableDiffusionPipeline": (
        "text_encoder",
        "tokenizer",
        "safety_checker",
        "feature_extractor",
        "image_encoder",
    )
}


def autoencoder_config(model, scale=1.0, size=None) -> dict:
    """The config.json of a first stage with these arguments of ours."""
    model = {"name": "autoencoder", "attention_kind": "softmax", "resample_conv": True} | dict(
        model
    )
    _same(model, "first stage", name="autoencoder", attention_kind="softmax", resample_conv=True)
    _same({"tanh_out": False, "shortcut": ""} | model, "first stage", tanh_out=False, shortcut="")
    kind = AUTOENCODERS.get(model["bottleneck"])
    if not kind:
        raise errors.UsageError(
            f"diffusers has no first stage with bottleneck={model['bottleneck']!r}: this run "
            "cannot be exported."
        )
    kl = kind == "AutoencoderKL"
    if kl and model["z_channels"] != model["latent_channels"]:
        raise errors.UsageError(
            f"diffusers' AutoencoderKL has latents of z_channels={model['z_channels']} channels; "
            f"this run's have latent_channels={model['latent_channels']}."
        )
    channels = model.get("image_channels", 3)
    blocks = ("Attn", "DownEncoderBlock2D", "UpDecoderBlock2D")
    config = _levels(model, *blocks, channels=(channels, channels)) | {
        "_class_name": kind,
        "latent_channels": model["z_channels"],
        "mid_block_add_attention": model["mid_attention"],
        "sample_size": size,
        "scaling_factor": scale,
    }
    if not kl:
        config |= {
            "num_vq_embeddings": model["codebook_size"],
            "vq_embed_dim": model["latent_channels"],
        }
    return config


def unet_config(config, channels) -> dict:
    """The config.json of a UNet. channels: (in, out)."""
    model = {"heads_up": None, "fill_heads": True, "resample_conv": True} | dict(config["model"])
    _same(model, "UNet", resblock_updown=False, heads_up=None, resample_conv=True)
    _same({"codebook_logits": 0} | model, "UNet", codebook_logits=0)
    cross, widths = model["cross_attention"], _widths(model)
    blocks = ("CrossAttn" if cross else "Attn", "DownBlock2D", "UpBlock2D")
    common = _levels(model, *blocks, channels=channels) | {
        "_class_name": "UNet2DConditionModel" if cross else "UNet2DModel",
        "norm_eps": model.get("eps", 1e-5),
        "flip_sin_to_cos": not model.get("sin_first", False),
        "freq_shift": model.get("freq_shift", 0),
        "downsample_padding": 0 if model.get("asymmetric", False) else 1,
        "dropout": model["dropout"],
        "resnet_time_scale_shift": "scale_shift" if model["scale_shift"] else "default",
        "sample_size": config["data"]["size"] // config["f"],
    }
    number, each = model["heads"], model["head_channels"]
    if not cross:
        if not each and number != 1:
            raise errors.UsageError(
                f"diffusers' UNet2DModel has one head or heads of equal width; this run's UNet has "
                f"heads={number} at every level."
            )
        return common | {"attention_head_dim": each or None}
    if each and any(width % each for width in widths):
        raise errors.UsageError(f"Widths {widths} do not divide by head_channels={each}.")
    if model["scale_shift"]:
        raise errors.UsageError("diffusers' cross-attention UNet is not written with scale_shift.")
    heads = [width // each for width in widths] if each else number
    tokens = [
        k for k in _sorted(config["conditioners"]) if "width" in k and k.get("place") != "vector"
    ]
    return common | {
        "attention_head_dim": list(heads) if isinstance(heads, tuple) else heads,
        "cross_attention_dim": tokens[0]["width"],
        "transformer_layers_per_block": model["transformer_depth"],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "use_linear_projection": False,
    }


def scheduler_config(process, spacing="legacy") -> dict:
    """A DDIM scheduler on the run's time grid; "legacy" is as the official code samples."""
    if process["schedule"] not in SCHEDULES:
        raise errors.UsageError(f"diffusers has no schedule like {process['schedule']!r}.")
    # where its DDIM has no such grid, the one that differs least
    grid = diffusers.SPACINGS.get(spacing, diffusers.SPACINGS["exact"])
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": process["timesteps"],
        "beta_start": process["beta_start"],
        "beta_end": process["beta_end"],
        "beta_schedule": SCHEDULES[process["schedule"]],
        "prediction_type": PREDICTIONS[process["prediction"]],
        "rescale_betas_zero_snr": process["zero_terminal_snr"],
        "clip_sample": False,
        "steps_offset": 1,  # StableDiffusionPipeline insists; it counts for "leading" alone
    } | grid


def _pipeline(slot, unet, channels, conditioners):
    """The pipeline that samples such a model; None where diffusers has only its parts."""
    if slot and channels[0] == channels[1]:
        if unet["_class_name"] == "UNet2DModel" and not conditioners:
            return "LDMPipeline"
        if slot == "vae":
            return "StableDiffusionPipeline"
    if not slot and not conditioners and unet["_class_name"] == "UNet2DModel":
        return "DDIMPipeline"
    return None


def _write_class_tokens(folder, kwargs, params):
    """The table of class tokens under its official name. diffusers has no class for it."""
    state = {"embedding.weight": np.asarray(params["table"]["embedding"])}
    rows, width = state["embedding.weight"].shape
    use = "encoder_hidden_states = embedding.weight[ids][:, None]; the last row is no class at all"
    config = {"_class_name": "ClassEmbedder", "n_classes": rows, "embed_dim": width, "use": use}
    _write_model(folder / diffusers.CLASSES, config, state, metadata={"use": use})


def _write_bert(folder, kwargs, params):
    config = {
        "architectures": ["LDMBertModel"],
        "model_type": "ldmbert",
        "vocab_size": kwargs.get("vocab_size", 30522),
        "max_position_embeddings": kwargs.get("length", 77),
        "d_model": kwargs["width"],
        "encoder_layers": kwargs["depth"],
        "encoder_ffn_dim": 4 * kwargs["width"],
        "encoder_attention_heads": kwargs.get("heads", 8),
        "head_dim": kwargs.get("head_width", 64),
        "activation_function": "gelu",
    }
    state = rules.export(params, diffusers.bert_table(kwargs["depth"]))
    _write_model(folder / "bert", config, state, "model.safetensors")


_CONDITIONER_WRITERS = dict(**{"class": _write_class_tokens}, text=_write_bert)


def _conditioner_writer(label, kwargs):
    """What writes a conditioner that has weights of its own."""
    if kwargs["name"] not in _CONDITIONER_WRITERS:
        raise errors.UsageError(
            f"diffusers has no counterpart of the conditioner {kwargs['name']!r} of {label!r}: "
            "this run cannot be exported."
        )
    return _CONDITIONER_WRITERS[kwargs["name"]]


def _channels(params):
    unet = params["unet"]
    return unet["conv_in"]["kernel"].shape[2], unet["conv_out"]["kernel"].shape[3]


def _levels(model, attends, down, up, channels) -> dict:
    """What the configs of both kinds of network say of their levels."""
    kinds = [attends * (2**level in model["attention"]) for level in range(len(model["mult"]))]
    return {
        "_diffusers_version": VERSION,
        "act_fn": "silu",
        "block_out_channels": _widths(model),
        "down_block_types": [kind + down for kind in kinds],
        "up_block_types": [kind + up for kind in reversed(kinds)],
        "in_channels": channels[0],
        "out_channels": channels[1],
        "layers_per_block": model["blocks"],
        "norm_num_groups": model["groups"],
    }


def _widths(model):
    widths = [model["width"] * m for m in model["mult"]]
    if any(width % model["groups"] for width in widths):
        raise errors.UsageError(
            f"diffusers' group norms all have {model['groups']} groups, which widths {widths} do "
            "not divide by."
        )
    return widths


def _same(model, what, **wanted):
    for key, value in wanted.items():
        if model.get(key, value) != value:
            raise errors.UsageError(
                f"diffusers has no {what} with {key}={model[key]!r}: this run cannot be exported."
            )


def _sorted(conditioners):
    return [kwargs for _, kwargs in sorted(conditioners.items())]


def _write_model(folder, config, state, name=WEIGHTS, metadata=None):
    from safetensors.numpy import save_file

    _write_json(folder / "config.json", config)
    about = {"format": "pt", "converted_by": "ldm_jax"} | (metadata or {})
    save_file(state, folder / name, metadata=about)


def _write_json(path: pathlib.Path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
