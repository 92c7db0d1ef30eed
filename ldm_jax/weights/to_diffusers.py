"""Exports runs as folders that diffusers' `from_pretrained` loads, with the same outputs.

Where diffusers has no such architecture, one UsageError says which part has no counterpart.
"""

import numpy as np

from ldm_jax.base import errors
from ldm_jax.models.autoencoder import Autoencoder
from ldm_jax.models.conditioners import TextEmbedder
from ldm_jax.models.unet import UNet
from ldm_jax.weights import diffusers, dit, folders, rules, schedulers, text_encoders
from ldm_jax.weights.foreign import defaults

WEIGHTS = "diffusion_pytorch_model.safetensors"
VERSION = "0.30.0"  # of diffusers, at least
STABLE_DIFFUSION = "StableDiffusionPipeline"
LATENT_CONSISTENCY = "LatentConsistencyModelPipeline"  # the same, told its guidance
# Its parts that a run may lack; a caller then gives embeddings, as prompt_embeds.
ABSENT = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder")
PLAIN = {"scale": 1.0}  # what latents.json says where latents stay as they are
AUTOENCODERS = {"kl": "AutoencoderKL", "vq": "VQModel"}  # by their bottleneck


def write_first_stage(folder, model, params, latents=PLAIN, size=None):
    """An AutoencoderKL or VQModel. params: {"model": tree}; latents: see autoencoder_config."""
    config = autoencoder_config(model, latents, size)
    state = rules.export(params, diffusers.autoencoder_table(model))
    write_model(folder, config, state)
    return config["_class_name"]


def write_second_stage(folder, config, params, first=None, latents=PLAIN) -> str:
    """A pipeline's folder: its denoiser, autoencoder, scheduler, conditioners, model_index.json.

    config: the run's. first: its first stage's (config.model, params {"model": tree}), None for
    pixels. latents: the run's latents.json. These pipelines know one scale for all channels, so
    that a scale of every channel is multiplied into the autoencoder's two ends.
    Returns the class to load it with.
    """
    name = config["model"]["name"]
    if name == "dit":
        return _write_dit(folder, config, params, first, latents)
    if name != "unet":
        raise errors.UsageError(
            f"config.model.name={name}: diffusers has no such network, so that this run cannot be "
            "exported; unet and dit can."
        )
    net = params["unet"]
    unet = unet_config(config, net)
    table, state = diffusers.unet_table(config["model"]), {"unet": net}
    metadata, outside, clip = {}, [], None
    for label, kwargs in sorted(config["conditioners"].items()):
        path = f"conditioners_{label}"
        if kwargs["name"] == "class" and kwargs.get("place") == "vector":
            table = [*table, rules.Rule("class_embedding", f"{path}/table", "table")]
            state[path] = params[path]
            unet["num_class_embeds"] = len(params[path]["table"]["embedding"])
            metadata["null_class"] = "last"
        elif kwargs["name"] == "scalar":
            if unet["_class_name"] == "UNet2DModel":
                raise errors.UsageError(
                    "diffusers tells guidance to a UNet with cross-attention alone: a student of "
                    "guidance in a range cannot be exported without (config.model.cross_attention)."
                )
            table = [*table, rules.Rule(diffusers.GUIDANCE, f"{path}/to_time", "dense")]
            state[path] = params[path]
            unet["time_cond_proj_dim"] = len(params[path]["to_time"]["kernel"])
        elif kwargs["name"] == "clip":
            clip = kwargs
        elif path in params:
            if kwargs["name"] not in _CONDITIONER_WRITERS:
                raise errors.UsageError(
                    f"diffusers has no counterpart of the conditioner {kwargs['name']!r} of "
                    f"{label!r}: this run cannot be exported."
                )
            outside.append((_CONDITIONER_WRITERS[kwargs["name"]], kwargs, params[path]))
    write_model(folder / "unet", unet, rules.export(state, table), metadata=metadata)
    encoder = text_encoders.write(folder, clip) if clip else {}
    for write, kwargs, tree in outside:
        write(folder, kwargs, tree)
    scheduler = _write_scheduler(folder, schedulers.config_of(config))
    slot, parts = None, {"scheduler": scheduler, "unet": unet["_class_name"]}
    if first:
        kl = AUTOENCODERS.get(first[0].get("bottleneck")) == "AutoencoderKL"
        slot = "vae" if config["model"]["cross_attention"] and kl else "vqvae"
    pipeline = _pipeline(slot, unet, config["conditioners"], latents, scheduler)
    if first:
        if pipeline and kl and "shift" in latents:
            first, latents = (first[0], _normalised(first[1], latents)), PLAIN
        side = config["data"]["size"]
        parts[slot] = write_first_stage(folder / slot, *first, latents=latents, size=side)
    if not pipeline:
        return "its parts, each by its own class"
    index = {"_class_name": pipeline, "_diffusers_version": VERSION}
    index |= {name: ["diffusers", kind] for name, kind in parts.items()}
    prompted = pipeline in (STABLE_DIFFUSION, LATENT_CONSISTENCY)
    if prompted:
        index |= {name: [None, None] for name in ABSENT} | {"requires_safety_checker": False}
    folders.write_json(folder / "model_index.json", index | encoder)
    unguided = pipeline == STABLE_DIFFUSION and config["distil"]["method"]
    given = ["guidance_scale=1"] if unguided else []
    if prompted and not encoder:
        given.append("prompt_embeds; text_encoder=None, tokenizer=None to from_pretrained")
    return f"{pipeline}, with {' and '.join(given)}" if given else pipeline


def autoencoder_config(model, latents=PLAIN, size=None) -> dict:
    """The config.json of a first stage with these arguments of ours, and this scale of its latents.

    latents: {"scale": number}, or {"scale": [c], "shift": [c]}.
    """
    model = defaults(Autoencoder) | {"name": "autoencoder"} | dict(model)
    _same(model, "first stage", name="autoencoder", attention_kind="softmax", resample_conv=True)
    _same(model, "first stage", tanh_out=False, shortcut="", patch=1, fold=1)
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
    channels = (model["image_channels"],) * 2
    config = _levels(model, "Attn", "DownEncoderBlock2D", "UpDecoderBlock2D", channels) | {
        "_class_name": kind,
        "latent_channels": model["z_channels"],
        "mid_block_add_attention": model["mid_attention"],
        "sample_size": size,
        "scaling_factor": latents["scale"],
    }
    if "shift" in latents:
        if not kl:
            raise errors.UsageError(
                "diffusers' VQModel has one scale for all channels, and this run has one for each: "
                "it cannot be exported."
            )
        std = [1 / scale for scale in latents["scale"]]
        config |= dict(scaling_factor=1.0, latents_mean=latents["shift"], latents_std=std)
    codebook = {
        "num_vq_embeddings": model["codebook_size"],
        "vq_embed_dim": model["latent_channels"],
    }
    return config if kl else config | codebook


def unet_config(config, net) -> dict:
    """The config.json of a UNet. net: its parameters."""
    model = defaults(UNet) | dict(config["model"])
    _same(model, "UNet", resblock_updown=False, heads_up=None, resample_conv=True)
    _same(model, "UNet", codebook_logits=0)
    channels = net["conv_in"]["kernel"].shape[2], net["conv_out"]["kernel"].shape[3]
    cross, widths = model["cross_attention"], _widths(model)
    attends = "CrossAttn" if cross else "Attn"
    common = _levels(model, attends, "DownBlock2D", "UpBlock2D", channels) | {
        "_class_name": "UNet2DConditionModel" if cross else "UNet2DModel",
        "norm_eps": model["eps"],
        "flip_sin_to_cos": not model["sin_first"],
        "freq_shift": model["freq_shift"],
        "downsample_padding": 0 if model["asymmetric"] else 1,
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
    given = [kwargs for _, kwargs in sorted(config["conditioners"].items())]
    added = lambda own: own["name"] == "scalar" or own.get("place") == "vector"
    tokens = [own for own in given if "width" in own and not added(own)]
    return common | {
        "attention_head_dim": list(heads) if isinstance(heads, tuple) else heads,
        "cross_attention_dim": tokens[0]["width"],
        "transformer_layers_per_block": model["transformer_depth"],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "use_linear_projection": False,
    }


def _write_dit(folder, config, params, first, latents) -> str:
    """As `write_second_stage`, of a diffusion transformer conditioned on a class."""
    classes = {label: dict(own) for label, own in config["conditioners"].items()}
    own = next(iter(classes.values()), {})
    if len(classes) != 1 or (own.get("name"), own.get("place")) != ("class", "vector"):
        raise errors.UsageError(
            "diffusers' DiT is conditioned on a class that is added to the timestep (name='class', "
            f"place='vector'), and this run on {', '.join(classes) or 'nothing'}: it cannot be "
            "exported."
        )
    (label,), net = classes, params["dit"]
    table = params[f"conditioners_{label}"]
    channels, size = net["patch_in"]["kernel"].shape[2], config["data"]["size"] // config["f"]
    about = dit.diffusers_config(config["model"], channels, size, own["num_classes"])
    about["_diffusers_version"] = VERSION
    state = rules.export(
        {"dit": net, "conditioners_class": table}, dit.diffusers_table(config["model"])
    )
    write_model(folder / "transformer", about, state)
    offset = config["model"].get("time_offset", 0)
    scheduler = _write_scheduler(folder, schedulers.config_of(config, offset))
    if not first:
        return "its parts, each by its own class"
    if "shift" in latents and AUTOENCODERS.get(first[0].get("bottleneck")) == "AutoencoderKL":
        first, latents = (first[0], _normalised(first[1], latents)), PLAIN
    kind = write_first_stage(folder / "vae", *first, latents=latents, size=config["data"]["size"])
    if kind != "AutoencoderKL" or scheduler not in ("DDIMScheduler", schedulers.LCM):
        return "its parts, each by its own class"
    parts = {"transformer": about["_class_name"], "vae": kind, "scheduler": scheduler}
    index = {"_class_name": "DiTPipeline", "_diffusers_version": VERSION}
    index |= {name: ["diffusers", part] for name, part in parts.items()}
    folders.write_json(folder / "model_index.json", index)
    unguided = own["num_classes"] != 1000 or config["distil"]["method"]
    return "DiTPipeline" + (", with guidance_scale=1" if unguided else "")


def _write_scheduler(folder, config) -> str:
    path = folder / "scheduler" / "scheduler_config.json"
    folders.write_json(path, {"_diffusers_version": VERSION} | config)
    return config["_class_name"]


def _normalised(params, latents) -> dict:
    """The parameters of a KL autoencoder whose latents come out as the denoiser sees them."""
    scale, shift = np.float32(latents["scale"]), np.float32(latents["shift"])
    own, back = params["model"]["to_latent"], params["model"]["from_latent"]
    mean, logvar = np.split(np.asarray(own["bias"]), 2)
    kernel = np.asarray(own["kernel"]) * np.append(scale, np.ones_like(scale))
    own = {"kernel": kernel, "bias": np.append((mean - shift) * scale, logvar + 2 * np.log(scale))}
    kernel = np.asarray(back["kernel"])
    back = {"kernel": kernel / scale[:, None], "bias": back["bias"] + shift @ kernel}
    return {"model": params["model"] | {"to_latent": own, "from_latent": back}}


def _pipeline(slot, unet, conditioners, latents, scheduler):
    """The pipeline that samples such a model; None where diffusers has only its parts."""
    plain = unet["_class_name"] == "UNet2DModel" and not conditioners
    if not slot:  # DDIMPipeline makes any scheduler a DDIM, DDPMPipeline takes it as it is
        of_pixels = "DDPMPipeline" if scheduler == schedulers.LCM else "DDIMPipeline"
        return of_pixels if plain and latents["scale"] == 1.0 else None
    if unet["in_channels"] != unet["out_channels"]:
        return None
    if plain or slot != "vae":
        return "LDMPipeline" if plain else None
    return LATENT_CONSISTENCY if "time_cond_proj_dim" in unet else STABLE_DIFFUSION


def _write_class_tokens(folder, kwargs, params):
    """The table of class tokens under its official name. diffusers has no class for it."""
    state = {"embedding.weight": np.asarray(params["table"]["embedding"])}
    rows, width = state["embedding.weight"].shape
    use = "encoder_hidden_states = embedding.weight[ids][:, None]; the last row is no class at all"
    config = {"_class_name": "ClassEmbedder", "n_classes": rows, "embed_dim": width, "use": use}
    write_model(folder / diffusers.CLASSES, config, state, metadata={"use": use})


def _write_bert(folder, kwargs, params):
    kwargs = defaults(TextEmbedder) | kwargs
    config = {
        "architectures": ["LDMBertModel"],
        "model_type": "ldmbert",
        "vocab_size": kwargs["vocab_size"],
        "max_position_embeddings": kwargs["length"],
        "d_model": kwargs["width"],
        "encoder_layers": kwargs["depth"],
        "encoder_ffn_dim": 4 * kwargs["width"],
        "encoder_attention_heads": kwargs["heads"],
        "head_dim": kwargs["head_width"],
        "activation_function": "gelu",
    }
    state = rules.export(params, diffusers.bert_table(kwargs["depth"]))
    write_model(folder / "bert", config, state, "model.safetensors")


# Writers of the conditioners that have trained weights.
_CONDITIONER_WRITERS = {"class": _write_class_tokens, "text": _write_bert}


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
        if model[key] != value:
            raise errors.UsageError(
                f"diffusers has no {what} with {key}={model[key]!r}: this run cannot be exported."
            )


def write_model(folder, config, state, name=WEIGHTS, metadata=None):
    """Writes a model's folder: config.json, and its weights as a file called `name`."""
    from safetensors.numpy import save_file

    folders.write_json(folder / "config.json", config)
    about = {"format": "pt", "converted_by": "ldm_jax"} | (metadata or {})
    save_file(state, folder / name, metadata=about)
