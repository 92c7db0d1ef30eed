"""Official checkpoints: from the yaml's vocabulary to ours. The tables of keys are in compvis.py.

The yaml says `target` (a class) and `params` (its arguments), nested. Keys that only served the
official trainer are passed over; what would change numbers is translated or refused.
"""

import pathlib
import re

import numpy as np

from ldm_jax.base import errors, tensorfile
from ldm_jax.diffusion.schedules import alpha_bar
from ldm_jax.weights import compvis
from ldm_jax.weights.rules import within
from ldm_jax.weights.source import Source, refuse_unless

SCHEDULES = dict(linear="scaled_linear", sqrt_linear="linear", sqrt="sqrt", cosine="cosine")
FIRST_STAGES = ("AutoencoderKL", "VQModel", "VQModelInterface")
NO_NULL_CLASS = 1000  # ImageNet's classes and nothing else; published models have 1001


def open_checkpoint(config, checkpoint, heads: int = 0) -> Source:
    """A yaml and a state dict's file. heads: overrules the yaml, see `_heads`."""
    model = _read_yaml(config).get("model")
    if not isinstance(model, dict) or "target" not in model:
        raise errors.UsageError(f"{config} has no model.target: not an official model's yaml.")
    state = tensorfile.read(checkpoint)
    name, params = _class(model)
    if name in FIRST_STAGES:
        return first_stage(name, params, state)
    if name in ("LatentDiffusion", "DDPM"):
        return second_stage(params, state, heads)
    raise errors.UsageError(
        f"{config}: model.target={model['target']!r} is not supported; LatentDiffusion, DDPM, "
        f"{', '.join(FIRST_STAGES)} are."
    )


def first_stage(name, params, state, prefix="") -> Source:
    """AutoencoderKL, VQModel or VQModelInterface. prefix: of its keys."""
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    _, loss = _class(params.get("lossconfig", {"target": "Identity"}))
    loss_keys = {
        "kl_weight": "kl_weight",
        "codebook_weight": "codebook_weight",
        "perceptual_weight": "perceptual_weight",
        "disc_weight": "disc_weight",
        "disc_start": "disc_start",
        "disc_loss": "disc_loss",
        "pixel_loss": "pixel_loss",
        "logvar_init": "logvar",
    }
    config = {
        "model": autoencoder(name, params),
        "data": {"size": params["ddconfig"]["resolution"]},
        "loss": {ours: loss[key] for key, ours in loss_keys.items() if key in loss},
        "discriminator": {"norm": "actnorm" if loss.get("use_actnorm") else "batch"},
    }
    if "loss.logvar" in own:
        config["loss"]["logvar"] = float(own["loss.logvar"])
    rules = within([("", "model/")], compvis.AUTOENCODER)
    tables = {"autoencoder": (own, rules, compvis.BESIDE_AUTOENCODER)}
    # its discriminator comes along, so that training can go on
    judge = {k: v for k, v in own.items() if k.startswith("loss.discriminator.")}
    if judge and loss:
        layers = loss.get("disc_num_layers", 3)
        width = judge["loss.discriminator.main.0.weight"].shape[0]
        config["discriminator"] |= {"layers": layers, "width": width}
        rules = within([(r"loss\.discriminator\.", "")], compvis.discriminator(layers))
        tables["discriminator"] = (judge, rules, compvis.RUNNING_STATISTICS)
    return Source("autoencode", config, tables, step=int(own.get("global_step", 0)))


def autoencoder(name, params) -> dict:
    """The arguments of our Autoencoder."""
    dd = params["ddconfig"]
    refuse_unless(params, name, remap=(None,), use_ema=(False,), colorize_nlabels=(None,))
    refuse_unless(dd, "ddconfig", double_z=(name == "AutoencoderKL",), give_pre_end=(False,))
    if dd["in_channels"] != dd["out_ch"]:
        raise errors.UsageError(f"ddconfig: in_channels={dd['in_channels']} and out_ch differ.")
    kind = "linear" if dd.get("use_linear_attn") else dd.get("attn_type", "vanilla")
    refuse_unless({"attn_type": kind}, "ddconfig", attn_type=("vanilla", "linear", "none"))
    factors = [2**level for level in range(len(dd["ch_mult"]))]
    attended = [f for f in factors if dd["resolution"] // f in dd["attn_resolutions"]]
    model = dict(
        bottleneck="kl" if name == "AutoencoderKL" else "vq",
        width=dd["ch"],
        mult=tuple(dd["ch_mult"]),
        blocks=dd["num_res_blocks"],
        attention=() if kind == "none" else tuple(attended),
        mid_attention=kind != "none",
        z_channels=dd["z_channels"],
        latent_channels=params["embed_dim"],
        codebook_size=params.get("n_embed", 0),
        dropout=dd.get("dropout", 0.0),
    )
    rest = dict(
        attention_kind="linear" if kind == "linear" else "softmax",
        image_channels=dd["in_channels"],
        resample_conv=dd.get("resamp_with_conv", True),
        tanh_out=dd.get("tanh_out", False),
    )
    usual = dict(attention_kind="softmax", image_channels=3, resample_conv=True, tanh_out=False)
    return model | {k: v for k, v in rest.items() if v != usual[k]}


def second_stage(params, state, heads=0) -> Source:
    """LatentDiffusion, or DDPM on pixels."""
    _, net = _class(params["unet_config"])
    beneath, channels, factor = _beneath(params, net, state)
    process = _process(params, state)
    conditioners, tables, notes = _conditioners(params, net, channels)
    model, unet_args = unet(net, heads)
    if _undecided_heads(net) and not heads:
        notes.append(
            "num_head_channels with a spatial transformer: today's official code makes "
            f"{net['num_head_channels']} channels a head of it, and so does this run; weights from "
            "before April 2022 (cin256 on VQ-f8, layout2img, text2img256) want --heads=1."
        )
    rules = within([(r"model\.diffusion_model\.", "unet/")], compvis.unet(**unet_args))
    for i, (table, where) in enumerate(tables):
        rules += within([(where, f"conditioners_{i}/")], table)
    ignore = (*compvis.BUFFERS, *compvis.BESIDE_DENOISER, *_unread(conditioners, net))
    averaged = _averaged(state)
    size = net.get("image_size", params.get("image_size", 32))
    scale = state["scale_factor"] if "scale_factor" in state else params.get("scale_factor", 1.0)
    return Source(
        stage="diffuse",
        config={
            "model": model,
            "conditioners": conditioners,
            "process": process,
            "loss": {"distance": params.get("loss_type", "l2")},
            "data": {"size": (size if isinstance(size, int) else min(size)) * factor},
            "latents": {"scale": float(scale)},
            "optim": {"denoiser": {"ema": 0.9999 if averaged else 0.0}},
        },
        tables={"denoiser": (state, rules, ignore)},
        ema={"denoiser": (averaged, rules, ignore)} if averaged else {},
        first_stage=beneath,
        scale=float(scale),
        step=int(state.get("global_step", 0)),
        notes=notes,
    )


def unet(net, heads=0) -> tuple[dict, dict]:
    """The arguments of our UNet, and those of its table of keys."""
    where = "unet_config"
    refuse_unless(net, where, dims=(2,), use_fp16=(False,))
    transformer = net.get("use_spatial_transformer", False)
    legacy = net.get("legacy", True)
    split = heads_of(net, heads)
    model = dict(
        width=net["model_channels"],
        mult=tuple(net.get("channel_mult", (1, 2, 4, 8))),
        blocks=net["num_res_blocks"],
        attention=tuple(net["attention_resolutions"]),
        heads=split["heads"] or 0,
        head_channels=split["head_channels"] or 0,
        transformer_depth=net.get("transformer_depth", 1),
        cross_attention=transformer,
        dropout=net.get("dropout", 0.0),
        scale_shift=net.get("use_scale_shift_norm", False),
        resblock_updown=net.get("resblock_updown", False),
    )
    rest = dict(
        heads_up=split["heads_up"],
        # what a checkpoint's weights have decided, whatever the widths
        fill_heads=legacy,
        resample_conv=net.get("conv_resample", True),
        codebook_logits=net.get("n_embed") or 0,
    )
    usual = dict(heads_up=None, fill_heads=True, resample_conv=True, codebook_logits=0)
    table = dict(levels=len(model["mult"]), blocks=model["blocks"], **split)
    table |= dict(
        cross_attention=transformer,
        codebook_logits=rest["codebook_logits"],
        new_qkv_order=net.get("use_new_attention_order", False),
    )
    return model | {k: v for k, v in rest.items() if v != usual[k]}, table


def heads_of(net, heads=0) -> dict:
    """heads, head_channels and heads_up (None where they do not count) as the official code at its
    last commit decides; `heads` overrules it.

    The trap (pains B2): that code changed twice, and shapes do not tell which version a checkpoint
    was trained by. For a spatial transformer with `num_head_channels`, weights from before April
    2022 had one head.
    """
    own = lambda key: None if net.get(key, -1) == -1 else net[key]
    number, width, up = own("num_heads"), own("num_head_channels"), own("num_heads_upsample")
    if heads:
        return dict(heads=heads, head_channels=None, heads_up=None)
    if not (number or width):
        raise errors.UsageError("unet_config: either num_heads or num_head_channels has to be set.")
    if width:
        return dict(heads=None, head_channels=width, heads_up=None)
    counts = net.get("legacy", True) and not net.get("use_spatial_transformer", False)
    return dict(heads=number, head_channels=None, heads_up=up if counts and up != number else None)


def _undecided_heads(net):
    transformer = net.get("use_spatial_transformer", False)
    return transformer and net.get("num_head_channels", -1) != -1 and net.get("legacy", True)


def _beneath(params, net, state):
    """The first stage: (Source or "identity:CHANNELS", channels of its latents, f)."""
    name, first = _class(params.get("first_stage_config", {"target": "IdentityFirstStage"}))
    if name == "IdentityFirstStage":
        channels = params.get("channels", net["out_channels"])
        return f"identity:{channels}", channels, 1
    if name not in FIRST_STAGES:
        raise errors.UsageError(f"first_stage_config: target {name!r} is not supported.")
    factor = 2 ** (len(first["ddconfig"]["ch_mult"]) - 1)
    return first_stage(name, first, state, "first_stage_model."), first["embed_dim"], factor


def _process(params, state) -> dict:
    process = dict(
        schedule=SCHEDULES.get(kind := params.get("beta_schedule", "linear"), kind),
        timesteps=params.get("timesteps", 1000),
        beta_start=params.get("linear_start", 1e-4),
        beta_end=params.get("linear_end", 2e-2),
    )
    ours = alpha_bar(**process)
    theirs = state.get("alphas_cumprod", ours)
    if np.shape(theirs) != ours.shape or not np.allclose(theirs, ours, rtol=1e-3, atol=1e-7):
        raise errors.UsageError(
            "The checkpoint's alphas_cumprod is not the schedule of this yaml (beta_schedule, "
            "linear_start, linear_end, timesteps): they do not belong together."
        )
    return process | {"prediction": params.get("parameterization", "eps")}


def _conditioners(params, net, channels):
    """(config.conditioners, [(table, regex of where its keys stand)] in their order, notes)."""
    stage = params.get("cond_stage_config") or "__is_unconditional__"
    found, tables, notes = {}, [], []
    if net.get("num_classes"):  # `adm`: added to the time embedding
        width = 4 * net["model_channels"]
        found["class"] = dict(
            name="class", num_classes=net["num_classes"], width=width, place="vector"
        )
        tables.append((compvis.LABEL_EMBEDDING, r"model\.diffusion_model\."))
        notes.append("label_emb has no null class: a row of zeros was added for guidance.")
        return found, tables, notes
    name, args = _class({"target": stage} if isinstance(stage, str) else stage)
    extra = net["in_channels"] - channels
    if name in _ENCODERS:
        field, kwargs, table = _ENCODERS[name](args, notes)
        found[field] = kwargs
        tables.append((table, r"cond_stage_model\."))
    elif net.get("use_spatial_transformer") and net.get("context_dim"):
        # the embeddings are made outside: CLIP, or whatever the caller has
        found["tokens"] = dict(name="tokens", width=net["context_dim"])
        found["tokens"]["length"] = args.get("max_length", 77)
        tables.append(([], ""))
    if extra and "segmentation" not in found:
        if name == "__is_first_stage__" and extra == channels + 1:
            found["mask"] = dict(name="inpaint")
        else:
            found["low_res"] = dict(name="image", channels=extra)
        tables.append(([], ""))
    order = sorted(range(len(found)), key=lambda i: list(found)[i])
    return found, [tables[i] for i in order], notes


def _class_embedder(args, notes):
    rows = args.get("n_classes", 1000)
    kwargs = dict(name="class", num_classes=rows - 1, width=args["embed_dim"])
    if rows != NO_NULL_CLASS:
        return "class", kwargs, compvis.CLASS_EMBEDDER
    notes.append("The class embedder has no null class: a row of zeros was added for guidance.")
    return "class", kwargs | {"num_classes": rows}, compvis.CLASS_EMBEDDER_WITHOUT_NULL


def _token_embedder(args, notes):
    length, vocabulary = args.get("max_seq_len", 77), args.get("vocab_size", 30522)
    layout = vocabulary == 8192
    kwargs = dict(
        name="layout" if layout else "text",
        width=args["n_embed"],
        depth=args["n_layer"],
        vocab_size=vocabulary,
        length=length,
        mask_padding=False,
    )
    if not layout:  # the empty caption of bert-base-uncased, where ids are its
        kwargs["null"] = (101, 102) if args.get("use_tokenizer", vocabulary == 30522) else ()
    rules = within([(r"transformer\.", "transformer/")], compvis.transformer(args["n_layer"]))
    return "layout_ids" if layout else "text_ids", kwargs, rules


def _rescaler(args, notes):
    refuse_unless(args, "SpatialRescaler", multiplier=(0.5,))
    channels = args.get("out_channels") or 0
    kwargs = dict(
        name="rescaler",
        stages=args.get("n_stages", 1),
        classes=args.get("in_channels", 3),
        channels=channels,
        method=args.get("method", "bilinear"),
        bias=args.get("bias", False),
    )
    return "segmentation", kwargs, compvis.SPATIAL_RESCALER if channels else []


_ENCODERS = dict(
    ClassEmbedder=_class_embedder,
    BERTEmbedder=_token_embedder,
    TransformerEmbedder=_token_embedder,
    SpatialRescaler=_rescaler,
)


def _unread(conditioners, net):
    """Keys that stand for something which we do not build."""
    ours = {"class", "text_ids", "layout_ids", "segmentation"} & conditioners.keys()
    whole = () if ours and not net.get("num_classes") else (r"cond_stage_model\..*",)
    head = (r"model\.diffusion_model\.out\..*",) if net.get("n_embed") else ()
    return whole + head


def _averaged(state) -> dict | None:
    """The state with the EMA's weights in place: their names are the others' without dots."""
    if not any(key.startswith("model_ema.diffusion_model") for key in state):
        return None
    shadow = lambda key: "model_ema." + key.removeprefix("model.").replace(".", "")
    own = [key for key in state if key.startswith("model.")]
    if missing := [key for key in own if shadow(key) not in state]:
        raise errors.UsageError(f"The EMA lacks {len(missing)} weights, first {missing[0]}.")
    return state | {key: state[shadow(key)] for key in own}


def _class(node) -> tuple[str, dict]:
    """(the class's bare name, its arguments) of a `target` and `params`."""
    return node["target"].rpartition(".")[2], node.get("params") or {}


def _read_yaml(path) -> dict:
    import yaml

    try:
        content = yaml.safe_load(pathlib.Path(path).read_text())
    except OSError as e:
        raise errors.UsageError(f"--config={path}: {e.strerror}.") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise errors.UsageError(f"--config={path} is not yaml: {' '.join(str(e).split())}") from e
    if not isinstance(content, dict):
        raise errors.UsageError(f"--config={path} is not the yaml of a model.")
    return _numbers(content)


def _numbers(node):
    """yaml takes 1e-6, without a dot, for a string."""
    if isinstance(node, dict):
        return {key: _numbers(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_numbers(value) for value in node]
    number = isinstance(node, str) and re.fullmatch(r"[-+]?[\d.]+[eE][-+]?\d+", node)
    return float(node) if number else node
