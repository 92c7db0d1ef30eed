"""Reads diffusers' models and pipelines. diffusers_config.py translates their configs."""

import itertools
import pathlib
import re

import numpy as np

from ldm_jax.base import errors, hub, tensorfile
from ldm_jax.models.autoencoder import Autoencoder
from ldm_jax.weights import compvis, diffusers, dit, folders, schedulers, text_encoders
from ldm_jax.weights import diffusers_config as translate
from ldm_jax.weights.foreign import Foreign, refuse_unless, unusual
from ldm_jax.weights.rules import Rule, within

# What diffusers itself fills in for a config that does not say.
SCALING_FACTOR = 0.18215
LCM_GUIDANCE = 8.5  # of a pipeline of latent consistency models
NETWORKS = ("unet", "transformer")  # what a pipeline calls its denoiser
FIRST_STAGES, ENCODERS = ("vae", "vqvae"), (diffusers.CLASSES, "bert", "text_encoder")
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # of a file of weights
ENDINGS = (".safetensors", ".bin")
# Names of attention layers before diffusers 0.15.
OLD_NAMES = dict(query="to_q", key="to_k", value="to_v", proj_attn="to_out.0")


def open_checkpoint(folder) -> Foreign:
    """A model's folder, or a pipeline's; or the name of one."""
    folder = local(folder)
    if (folder / "model_index.json").is_file():
        return _pipeline(folder)
    config = folders.read_json(folder / "config.json")
    return _reader(folder, config)(folder, config)


def local(folder) -> pathlib.Path:
    """The folder on this machine; of a repository, what is read of it and no other weights."""
    if not hub.is_name(folder):
        return pathlib.Path(folder)
    places = ("", *(f"{part}/" for part in (*NETWORKS, *FIRST_STAGES, *ENCODERS)))
    weights = lambda ending, places: [
        f"{place}{stem}{part}{ending}"
        for place, stem, part in itertools.product(places, STEMS, ("", "-*-of-*"))
    ]
    usual, other = ENDINGS
    local = hub.folder(folder, "*.json", "*.txt", *weights(usual, places))
    lacks = lambda place: (local / place / "config.json").is_file() and not any(
        (local / place).glob(f"*{usual}")
    )
    if lacking := [place for place in places if lacks(place)]:
        hub.folder(folder, *weights(other, lacking))
    return local


def _reader(folder, config):
    """The function that reads a model's folder, by its class."""
    readers = dict.fromkeys(("AutoencoderKL", "VQModel"), _first_stage)
    readers |= dict.fromkeys(("UNet2DModel", "UNet2DConditionModel"), _unet)
    readers |= dict.fromkeys(("DiTTransformer2DModel", "Transformer2DModel"), _dit)
    name = config.get("_class_name")
    if name not in readers:
        known = ", ".join(readers)
        raise errors.UsageError(f"{folder}: class {name!r} is not supported; {known} are.")
    return readers[name]


def _pipeline(folder) -> Foreign:
    index = folders.read_json(folder / "model_index.json")
    network = next((name for name in NETWORKS if index.get(name)), None)
    if not network:
        raise errors.UsageError(
            f"{folder} is a pipeline without {' or '.join(NETWORKS)}: not a latent diffusion."
        )
    within_it = lambda *names: next((folder / n for n in names if (folder / n).is_dir()), None)
    first = None
    if vae := within_it(*FIRST_STAGES):
        first = vae, folders.read_json(vae / "config.json")
    encoder = within_it(*ENCODERS)
    scheduler = folders.read_json(folder / "scheduler" / "scheduler_config.json")
    config = folders.read_json(folder / network / "config.json")
    read = _reader(folder / network, config)
    return read(folder / network, config, first, scheduler, encoder)


def _first_stage(folder, config) -> Foreign:
    name = config["_class_name"]
    refuse_unless(config, name, act_fn=("silu",), norm_type=("group",))
    refuse_unless(config, name, lookup_from_codebook=(False,))
    widths = config["block_out_channels"]
    model = dict(
        bottleneck="kl" if name == "AutoencoderKL" else "vq",
        width=widths[0],
        mult=translate.multiples(widths),
        blocks=config.get("layers_per_block", 1),
        attention=translate.attended(config, "DownEncoderBlock2D", "UpDecoderBlock2D"),
        mid_attention=config.get("mid_block_add_attention", True),
        z_channels=config["latent_channels"],
        latent_channels=config.get("vq_embed_dim") or config["latent_channels"],
        codebook_size=config.get("num_vq_embeddings", 0),
        groups=config.get("norm_num_groups", 32),
        **unusual(Autoencoder, image_channels=config.get("in_channels", 3)),
    )
    state = weights(folder)
    for key, used in (("quant_conv", "use_quant_conv"), ("post_quant_conv", "use_post_quant_conv")):
        if not config.get(used, True):  # ours always has it: the identity
            n = model["latent_channels"] * (2 if key == "quant_conv" else 1)
            state[f"{key}.weight"], state[f"{key}.bias"] = np.eye(n)[:, :, None, None], np.zeros(n)
    size = _size(config.get("sample_size", 256), 2 ** (len(widths) - 1))
    tables = {"autoencoder": (state, diffusers.autoencoder_table(model), ())}
    return Foreign("autoencode", {"model": model, "data": {"size": size}}, tables)


def _unet(folder, config, first=None, scheduler=None, encoder=None) -> Foreign:
    notes = []
    model = translate.unet_model(config)
    state = {f"unet.{k}": v for k, v in weights(folder).items()}
    rules = within([(r"unet\.", "")], diffusers.unet_table(model))
    found, files = {}, {}
    if rows := config.get("num_class_embeds"):
        table = Rule("unet.class_embedding", "conditioners_class/table", "table")
        # The last class is the one that stands for none where to_diffusers.py wrote the file.
        if tensorfile.metadata(_weight_files(folder)[0]).get("null_class") == "last":
            rows -= 1
        else:
            table = table._replace(reorder=compvis.with_null)
            notes.append("The class embedding has no null class: a row of zeros was added.")
        rules.append(table)
        own = dict(name="class", width=4 * model["width"], place="vector")
        found["class"] = own | {"num_classes": rows}
    if features := config.get("time_cond_proj_dim"):
        told = Rule(f"unet.{diffusers.GUIDANCE}", "conditioners_guidance/to_time", "dense")
        rules.append(told)
        found["guidance"] = dict(name="scalar", width=model["width"], features=features)
        notes.append("It is told its guidance; it does not say in which range: any is taken.")
    channels = config["out_channels"]
    if extra := config["in_channels"] - channels:
        found["low_res"] = dict(name="image", channels=extra)
    if model["cross_attention"]:
        if clip := encoder and text_encoders.of_pipeline(encoder.parent):
            found["text"], files = clip
        else:
            label, kwargs, table, given = _tokens(config, encoder, notes)
            found[label] = kwargs
            rules += within([(r"tokens\.", f"conditioners_{label}/")], table)
            state |= {f"tokens.{k}": v for k, v in given.items()}
    changes = {"model": model, "conditioners": found, "sample": {}}
    if "guidance" in found:
        lcm = schedulers.sampling({"_class_name": schedulers.LCM}, notes)
        changes["sample"] = lcm | {"guidance": LCM_GUIDANCE}
    size, side = config.get("sample_size") or 32, 2 ** (len(model["mult"]) - 1)
    beneath = _beneath(first, channels)
    return _second_stage(
        changes, (state, rules, ()), beneath, (size, side), scheduler, files, notes
    )


def _dit(folder, config, first=None, scheduler=None, encoder=None) -> Foreign:
    state = weights(folder)
    model, classes, rules, notes = dit.from_diffusers(config, state)
    flow = (scheduler or {}).get("_class_name") in schedulers.FLOW_SCHEDULERS
    if flow:  # their time of timestep t is t + 1
        model["time_offset"] = 1
    changes = {"model": model, "conditioners": {"class": classes}}
    beneath, size = _beneath(first, config.get("in_channels", 4)), config.get("sample_size", 32)
    side = (size, model["patch"])
    return _second_stage(changes, (state, rules, ()), beneath, side, scheduler, {}, notes)


def _beneath(first, channels):
    """(the first stage, config.latents, f) of a pipeline's autoencoder, or of none."""
    if not first:
        return f"identity:{channels}", {"scale": 1.0}, 1
    return _first_stage(*first), _latents(first[1]), 2 ** (len(first[1]["block_out_channels"]) - 1)


def _second_stage(changes, tables, beneath, side, scheduler, files, notes) -> Foreign:
    """side: of the latents, as the config says it, and what it has to divide by."""
    first, latents, factor = beneath
    if not scheduler:
        notes.append("No scheduler beside the network: the process is a guess of ours.")
    changes |= {
        "process": schedulers.process(scheduler) if scheduler else {},
        "data": {"size": _size(*side) * factor},
        "latents": latents,
        "sample": changes.get("sample", {})
        | (schedulers.sampling(scheduler, notes) if scheduler else {}),
        "optim": {"denoiser": {"ema": 0.0}},
    }
    more = {"first_stage": first, "files": files, "notes": notes}
    return Foreign("diffuse", changes, {"denoiser": tables}, **more)


def _latents(config) -> dict:
    """How a pipeline normalises the latents of an autoencoder with this config, as ours says it.

    z = (latent - latents_mean) scaling_factor / latents_std, or (latent - shift_factor)
    scaling_factor; see diffusers' pipelines of Stable Diffusion XL and 3.
    """
    given = {key: config.get(key) for key in ("shift_factor", "latents_mean", "latents_std")}
    scale = float(config.get("scaling_factor") or SCALING_FACTOR)
    if not any(given.values()):
        return {"scale": scale}
    if (given["latents_mean"] is None) != (given["latents_std"] is None):
        lacks = "latents_mean" if given["latents_mean"] is None else "latents_std"
        raise errors.UsageError(f"The autoencoder's config has no {lacks} beside its counterpart.")
    channels = config.get("vq_embed_dim") or config["latent_channels"]

    def every(key, value):
        value = np.float64(value).reshape(-1)
        if len(value) not in (1, channels):
            raise errors.UsageError(
                f"The autoencoder's config has {len(value)} numbers in {key} for its {channels} "
                "channels."
            )
        return np.broadcast_to(value, (channels,))

    if given["latents_std"] is None:
        mean, std = every("shift_factor", given["shift_factor"]), np.ones(channels)
    elif given["shift_factor"]:
        raise errors.UsageError(
            f"The autoencoder's config has shift_factor={given['shift_factor']} beside "
            "latents_mean: it is not clear what is meant."
        )
    else:
        mean, std = (every(key, given[key]) for key in ("latents_mean", "latents_std"))
    return {"mean": tuple(mean.tolist()), "std": tuple((std / scale).tolist())}


def _tokens(config, encoder, notes):
    """The conditioner of a cross-attention UNet: (field, its config, its table, its weights)."""
    own = folders.read_json(encoder / "config.json") if encoder else {}
    if own.get("_class_name") == "ClassEmbedder":  # as to_diffusers.py writes it
        kwargs = dict(name="class", num_classes=own["n_classes"] - 1, width=own["embed_dim"])
        return "class", kwargs, compvis.CLASS_EMBEDDER, weights(encoder)
    if own.get("model_type") != "ldmbert":
        if own:
            what = own.get("model_type") or own.get("architectures")
            notes.append(
                f"The text encoder ({what}) is not converted: give embeddings as `tokens`."
            )
        kwargs = dict(name="tokens", width=config["cross_attention_dim"])
        return "tokens", kwargs | {"length": own.get("max_position_embeddings", 77)}, [], {}
    refuse_unless(own, "LDMBertModel", activation_function=("gelu",), scale_embedding=(False,))
    kwargs = dict(
        name="text",
        width=own["d_model"],
        depth=own["encoder_layers"],
        vocab_size=own["vocab_size"],
        length=own["max_position_embeddings"],
        heads=own["encoder_attention_heads"],
        head_width=own.get("head_dim", 64),
        mask_padding=False,
        null=(101, 102) if own["vocab_size"] == 30522 else (),
    )
    state = {k: v for k, v in weights(encoder).items() if not k.startswith("to_logits")}
    return "text_ids", kwargs, diffusers.bert_table(kwargs["depth"]), state


def _size(size, factor):
    """A training size that our model divides; theirs may be a list."""
    size = size if isinstance(size, int) else min(size)
    return max(size // factor, 1) * factor


def weights(folder) -> dict:
    """The state dict of a model's folder, in today's names."""
    state = {}
    for path in _weight_files(folder):
        state |= tensorfile.read(path)
    old = re.compile(rf"(?<=\.)({'|'.join(OLD_NAMES)})(?=\.(weight|bias)$)")
    return {old.sub(lambda match: OLD_NAMES[match[1]], key): v for key, v in state.items()}


def _weight_files(folder) -> list:
    """The one file of a model's weights, or those that its index names."""
    index = [*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")]
    if index:
        files = folders.read_json(index[0])["weight_map"].values()
        names = {pathlib.Path(name).name for name in files}
        return sorted(folder / name for name in names)
    for stem in STEMS:
        for ending in ENDINGS:
            if (path := folder / (stem + ending)).is_file():
                return [path]
    raise errors.UsageError(f"{folder} holds no diffusion_pytorch_model.safetensors or .bin.")
