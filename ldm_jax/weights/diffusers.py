"""diffusers' models and pipelines: their configs in our words, and tables that work both ways.

A table depends on our config alone, so that reading and writing (to_diffusers.py) share it.
"""

import json
import pathlib
import re

import numpy as np

from ldm_jax.base import errors, tensorfile
from ldm_jax.weights.rules import Rule, within
from ldm_jax.weights.source import Source, refuse_unless

SCHEDULES = dict(scaled_linear="scaled_linear", linear="linear", squaredcos_cap_v2="cosine")
PREDICTIONS = dict(epsilon="eps", sample="x0", v_prediction="v")
# What diffusers itself fills in for a config that does not say.
SCALING_FACTOR = 0.18215
# Names of attention layers before diffusers 0.15.
OLD_NAMES = dict(query="to_q", key="to_k", value="to_v", proj_attn="to_out.0")

_RES = [
    *(Rule(f"norm{i}", f"norm_{i}", "norm") for i in (1, 2)),
    *(Rule(f"conv{i}", f"conv_{i}", "conv") for i in (1, 2)),
    Rule("time_emb_proj", "time", "dense"),
    Rule("conv_shortcut", "skip", "1x1"),
]
_ATTENTION = [
    Rule("group_norm", "norm", "norm"),
    *(Rule(f"to_{x}", "qkv", "dense", part=i, parts=3) for i, x in enumerate("qkv")),
    Rule("to_out.0", "proj", "dense"),
]
_TRANSFORMER_BLOCK = [
    *(Rule(f"norm{i}", f"norm_{i}", "norm") for i in (1, 2, 3)),
    *(
        Rule(f"attn{i}.to_{x}", f"{name}_attn/{to}", "dense")
        for i, name in ((1, "self"), (2, "cross"))
        for x, to in (("q", "q"), ("k", "k"), ("v", "v"), ("out.0", "out"))
    ),
    Rule("ff.net.0.proj", "mlp/proj", "dense"),
    Rule("ff.net.2", "mlp/out", "dense"),
]


def autoencoder_table(model) -> list[Rule]:
    """AutoencoderKL's and VQModel's. model: our `config.model`."""
    rules = [
        Rule("quant_conv", "to_latent", "1x1"),
        Rule("post_quant_conv", "from_latent", "1x1"),
        Rule("quantize.embedding", "codebook", "array"),
    ]
    for half, way, blocks in (("encoder", "down", 0), ("decoder", "up", 1)):
        own = [
            Rule("conv_in", "conv_in", "conv"),
            Rule("conv_norm_out", "norm_out", "norm"),
            Rule("conv_out", "conv_out", "conv"),
            *_middle(_ATTENTION),
            *_side(way, len(model["mult"]), model["blocks"] + blocks, _ATTENTION),
        ]
        rules += within([(f"{half}.", f"{half}/")], own)
    return within([("", "model/")], rules)


def unet_table(model, linear=False) -> list[Rule]:
    """UNet2DModel's and UNet2DConditionModel's. linear: `use_linear_projection`."""
    attention = _ATTENTION
    if model["cross_attention"]:
        attention = [
            Rule("norm", "norm", "norm"),
            *(Rule(f"proj_{x}", f"proj_{x}", "dense" if linear else "1x1") for x in ("in", "out")),
            *within(
                [
                    (f"transformer_blocks.{i}.", f"block_{i}/")
                    for i in range(model["transformer_depth"])
                ],
                _TRANSFORMER_BLOCK,
            ),
        ]
    levels, blocks = len(model["mult"]), model["blocks"]
    rules = [
        Rule("conv_in", "conv_in", "conv"),
        *(Rule(f"time_embedding.linear_{i}", f"time_{i}", "dense") for i in (1, 2)),
        *_side("down", levels, blocks, attention),
        *_middle(attention),
        *_side("up", levels, blocks + 1, attention),
        Rule("conv_norm_out", "norm_out", "norm"),
        Rule("conv_out", "conv_out", "conv"),
    ]
    return within([("", "unet/")], rules)


def bert_table(depth) -> list[Rule]:
    """LDMBertModel's."""
    layer = [
        Rule("self_attn_layer_norm", "norm_1", "norm"),
        *(Rule(f"self_attn.{x}_proj", f"attn/{x}", "dense") for x in ("q", "k", "v", "out")),
        Rule("final_layer_norm", "norm_2", "norm"),
        Rule("fc1", "mlp_in", "dense"),
        Rule("fc2", "mlp_out", "dense"),
    ]
    rules = [
        Rule("embed_tokens", "table", "table"),
        Rule("embed_positions", "positions", "array"),
        Rule("layer_norm", "norm", "norm"),
        *within([(f"layers.{i}.", f"block_{i}/") for i in range(depth)], layer),
    ]
    return within([("model.", "transformer/")], rules)


def open_checkpoint(folder) -> Source:
    """A model's folder, or a pipeline's."""
    folder = pathlib.Path(folder)
    if (folder / "model_index.json").is_file():
        return _pipeline(folder)
    config = _read_json(folder / "config.json")
    readers = dict(
        AutoencoderKL=_first_stage,
        VQModel=_first_stage,
        UNet2DModel=_second_stage,
        UNet2DConditionModel=_second_stage,
    )
    name = config.get("_class_name")
    if name not in readers:
        known = ", ".join(readers)
        raise errors.UsageError(f"{folder}: class {name!r} is not supported; {known} are.")
    return readers[name](folder, config)


def _pipeline(folder) -> Source:
    parts = {k for k, v in _read_json(folder / "model_index.json").items() if v and k[0] != "_"}
    own = [name for name in ("vae", "vqvae") if (folder / name).is_dir()]
    if "unet" not in parts:
        raise errors.UsageError(f"{folder} is a pipeline without a unet: not a latent diffusion.")
    first = None
    if own:
        first = folder / own[0], _read_json(folder / own[0] / "config.json")
        refuse_unless(
            first[1], own[0], shift_factor=(None,), latents_mean=(None,), latents_std=(None,)
        )
    encoder = next((n for n in ("bert", "text_encoder") if (folder / n).is_dir()), None)
    scheduler = _read_json(folder / "scheduler" / "scheduler_config.json")
    unet = folder / "unet"
    config = _read_json(unet / "config.json")
    return _second_stage(unet, config, first, scheduler, folder / encoder if encoder else None)


def _first_stage(folder, config) -> Source:
    name = config["_class_name"]
    refuse_unless(config, name, act_fn=("silu",), norm_type=("group",))
    refuse_unless(config, name, lookup_from_codebook=(False,))
    widths = config["block_out_channels"]
    attended = _attended(config, "DownEncoderBlock2D", "UpDecoderBlock2D")
    model = dict(
        bottleneck="kl" if name == "AutoencoderKL" else "vq",
        width=widths[0],
        mult=_multiples(widths),
        blocks=config.get("layers_per_block", 1),
        attention=attended,
        mid_attention=config.get("mid_block_add_attention", True),
        z_channels=config["latent_channels"],
        latent_channels=config.get("vq_embed_dim") or config["latent_channels"],
        codebook_size=config.get("num_vq_embeddings", 0),
        groups=config.get("norm_num_groups", 32),
    )
    if (channels := config.get("in_channels", 3)) != 3:
        model["image_channels"] = channels
    state = _weights(folder)
    for key, used in (("quant_conv", "use_quant_conv"), ("post_quant_conv", "use_post_quant_conv")):
        if not config.get(used, True):  # ours always has it: the identity
            n = model["latent_channels"] * (2 if key == "quant_conv" else 1)
            state[f"{key}.weight"], state[f"{key}.bias"] = np.eye(n)[:, :, None, None], np.zeros(n)
    size = _size(config.get("sample_size", 256), 2 ** (len(widths) - 1))
    tables = {"autoencoder": (state, autoencoder_table(model), ())}
    return Source("autoencode", {"model": model, "data": {"size": size}}, tables)


def _second_stage(folder, config, first=None, scheduler=None, encoder=None) -> Source:
    notes = [] if scheduler else ["No scheduler beside the UNet: the process is a guess of ours."]
    model = unet_model(config)
    rules, state = unet_table(model), {f"unet.{k}": v for k, v in _weights(folder).items()}
    rules = within([(r"unet\.", "")], rules)
    found, tables = {}, []
    if classes := config.get("num_class_embeds"):
        width = 4 * model["width"]
        found["class"] = dict(name="class", num_classes=classes, width=width, place="vector")
        with_null = lambda table: np.concatenate([table, np.zeros_like(table[:1])])
        table = [Rule("unet.class_embedding", "table", "table", reorder=with_null)]
        tables.append(table)
        notes.append("The class embedding has no null class: a row of zeros was added.")
    channels = config["out_channels"]
    if extra := config["in_channels"] - channels:
        found["low_res"] = dict(name="image", channels=extra)
        tables.append([])
    if model["cross_attention"]:
        own, kwargs, table, given = _text(config, encoder, notes)
        found[own] = kwargs
        tables.append(table)
        state |= {f"text.{k}": v for k, v in given.items()}
    for i, table in enumerate(tables):
        rules += within([("", f"conditioners_{i}/")], table)
    scale, factor, beneath = 1.0, 1, f"identity:{channels}"
    if first:
        scale, beneath = first[1].get("scaling_factor", SCALING_FACTOR), _first_stage(*first)
        factor = 2 ** (len(first[1]["block_out_channels"]) - 1)
    changes = {
        "model": model,
        "conditioners": found,
        "process": process(scheduler) if scheduler else {},
        "data": {
            "size": _size(config.get("sample_size") or 32, 2 ** (len(model["mult"]) - 1)) * factor
        },
        "latents": {"scale": scale},
        "optim": {"denoiser": {"ema": 0.0}},
    }
    tables = {"denoiser": (state, rules, ())}
    return Source("diffuse", changes, tables, first_stage=beneath, scale=scale, notes=notes)


def unet_model(config) -> dict:
    """UNet2DModel's or UNet2DConditionModel's config as the arguments of our UNet."""
    name, cross = config["_class_name"], config["_class_name"] == "UNet2DConditionModel"
    refuse_unless(config, name, act_fn=("silu",), center_input_sample=(False,))
    refuse_unless(config, name, time_embedding_type=("positional",), class_embed_type=(None,))
    refuse_unless(config, name, mid_block_scale_factor=(1,), add_attention=(True,))
    refuse_unless(config, name, downsample_type=("conv",), upsample_type=("conv",))
    refuse_unless(config, name, time_embedding_dim=(None,), time_cond_proj_dim=(None,))
    refuse_unless(config, name, resnet_time_scale_shift=("default", "scale_shift"))
    refuse_unless(config, name, mid_block_type=_middles(cross), attn_norm_num_groups=(None,))
    refuse_unless(config, name, dual_cross_attention=(False,), only_cross_attention=(False,))
    refuse_unless(config, name, encoder_hid_dim_type=(None,), addition_embed_type=(None,))
    refuse_unless(
        config, name, conv_in_kernel=(3,), conv_out_kernel=(3,), timestep_post_act=(None,)
    )
    refuse_unless(config, name, class_embeddings_concat=(False,), attention_type=("default",))
    widths = config["block_out_channels"]
    model = dict(
        width=widths[0],
        mult=_multiples(widths),
        blocks=_one(config, "layers_per_block", 2),
        attention=_attended(config, "DownBlock2D", "UpBlock2D"),
        **_heads(config, widths, cross),
        transformer_depth=_one(config, "transformer_layers_per_block", 1),
        cross_attention=cross,
        dropout=config.get("dropout", 0.0),
        scale_shift=config.get("resnet_time_scale_shift") == "scale_shift",
        groups=config.get("norm_num_groups", 32),
    )
    rest = dict(
        eps=config.get("norm_eps", 1e-5),
        sin_first=not config.get("flip_sin_to_cos", True),
        freq_shift=config.get("freq_shift", 0),
        asymmetric=config.get("downsample_padding", 1) == 0,
    )
    usual = dict(eps=1e-5, sin_first=False, freq_shift=0, asymmetric=False)
    return model | {k: v for k, v in rest.items() if v != usual[k]}


def process(scheduler) -> dict:
    """A scheduler's config as ours of the forward process."""
    name = scheduler.get("_class_name", "scheduler")
    refuse_unless(scheduler, name, trained_betas=(None,))
    refuse_unless(scheduler, name, beta_schedule=("linear", *SCHEDULES))
    refuse_unless(scheduler, name, prediction_type=("epsilon", *PREDICTIONS))
    return dict(
        schedule=SCHEDULES[scheduler.get("beta_schedule", "linear")],
        timesteps=scheduler.get("num_train_timesteps", 1000),
        beta_start=scheduler.get("beta_start", 1e-4),
        beta_end=scheduler.get("beta_end", 0.02),
        prediction=PREDICTIONS[scheduler.get("prediction_type", "epsilon")],
        zero_terminal_snr=scheduler.get("rescale_betas_zero_snr", False),
    )


def _heads(config, widths, cross) -> dict:
    """In UNet2DModel `attention_head_dim` is channels per head, None for one head; in
    UNet2DConditionModel it is the number of heads, unless `num_attention_heads` is given."""
    per_head = config.get("attention_head_dim", 8)
    if not cross:
        return dict(heads=0, head_channels=per_head) if per_head else dict(heads=1, head_channels=0)
    number = config.get("num_attention_heads") or per_head
    number = [number] * len(widths) if isinstance(number, int) else number
    each = {width // n for width, n in zip(widths, number, strict=True)}
    if len(set(number)) == 1:
        return dict(heads=number[0], head_channels=0)
    if len(each) == 1:
        return dict(heads=0, head_channels=each.pop())
    return dict(heads=tuple(number), head_channels=0)


def _text(config, encoder, notes):
    """The conditioner of a cross-attention UNet: (field, its config, its table, its weights)."""
    own = _read_json(encoder / "config.json") if encoder else {}
    if own.get("model_type") != "ldmbert":
        if own:
            what = own.get("model_type") or own.get("architectures")
            notes.append(
                f"The text encoder ({what}) is not converted: give embeddings as `tokens`."
            )
        length = own.get("max_position_embeddings", 77)
        return (
            "tokens",
            dict(name="tokens", width=config["cross_attention_dim"], length=length),
            [],
            {},
        )
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
    return (
        "text_ids",
        kwargs,
        within([(r"text\.", "")], bert_table(kwargs["depth"])),
        {k: v for k, v in _weights(encoder).items() if not k.startswith("to_logits")},
    )


def _side(way, levels, blocks, attention):
    """down_blocks or up_blocks; the latter count from the lowest resolution."""
    rules = []
    for level in range(levels):
        at = level if way == "down" else levels - 1 - level
        key, path = f"{way}_blocks.{at}.", f"{way}_{level}_"
        rules.append(Rule(f"{key}{way}samplers.0.conv", f"{path}{way}sample/conv", "conv"))
        for i in range(blocks):
            rules += within([(f"{key}resnets.{i}.", f"{path}block_{i}/")], _RES)
            rules += within([(f"{key}attentions.{i}.", f"{path}attn_{i}/")], attention)
    return rules


def _middle(attention):
    places = [(f"mid_block.resnets.{i}.", f"mid_block_{i + 1}/") for i in (0, 1)]
    return within(places, _RES) + within([("mid_block.attentions.0.", "mid_attn/")], attention)


def _attended(config, down, up) -> tuple:
    """The factors with attention, by the names of the blocks, the same on both sides."""
    names = dict(down=config["down_block_types"], up=config["up_block_types"][::-1])
    has = {way: [name.startswith(("Attn", "CrossAttn")) for name in names[way]] for way in names}
    kinds = {*names["down"], *names["up"]}
    known = {start + end for start in ("", "Attn", "CrossAttn") for end in (down, up)}
    if kinds - known or has["down"] != has["up"]:
        raise errors.UsageError(
            f"{config['_class_name']}: blocks {names['down']} and {names['up'][::-1]} are not "
            f"supported; both sides have the same attention, of {', '.join(sorted(known))}."
        )
    return tuple(2**level for level, attends in enumerate(has["down"]) if attends)


def _middles(cross):
    return ("UNetMidBlock2DCrossAttn" if cross else "UNetMidBlock2D",)


def _multiples(widths) -> tuple:
    if any(width % widths[0] for width in widths):
        raise errors.UsageError(f"block_out_channels={widths} must be multiples of the first.")
    return tuple(width // widths[0] for width in widths)


def _one(config, key, default):
    value = config.get(key, default)
    values = {value} if isinstance(value, int) else set(value)
    if len(values) > 1:
        raise errors.UsageError(f"{config['_class_name']}: {key}={value} differs between levels.")
    return values.pop()


def _size(size, factor):
    """A training size that our model divides; theirs may be a list."""
    size = size if isinstance(size, int) else min(size)
    return max(size // factor, 1) * factor


def _weights(folder) -> dict:
    """The state dict of a model's folder, in today's names."""
    index = [*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")]
    found = [
        path
        for stem in ("diffusion_pytorch_model", "model", "pytorch_model")
        for ending in (".safetensors", ".bin")
        if (path := folder / (stem + ending)).is_file()
    ]
    if index:
        found = sorted({folder / name for name in _read_json(index[0])["weight_map"].values()})
    if not found:
        raise errors.UsageError(f"{folder} holds no diffusion_pytorch_model.safetensors or .bin.")
    state = {}
    for path in found if index else found[:1]:
        state |= tensorfile.read(path)
    old = re.compile(rf"(?<=\.)({'|'.join(OLD_NAMES)})(?=\.(weight|bias)$)")
    return {old.sub(lambda match: OLD_NAMES[match[1]], key): v for key, v in state.items()}


def _read_json(path) -> dict:
    try:
        return json.loads(path.read_text())
    except OSError as e:
        raise errors.UsageError(f"--checkpoint: {path} cannot be read ({e.strerror}).") from e
    except ValueError as e:
        raise errors.UsageError(f"--checkpoint: {path} is not JSON ({e}).") from e
