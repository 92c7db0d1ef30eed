"""The official yaml's vocabulary in ours: networks, schedules and conditioners.

Keys that only served the official trainer are passed over; what would change numbers is translated
or refused.
"""

from ldm_jax.base import errors
from ldm_jax.models.autoencoder import Autoencoder
from ldm_jax.models.unet import UNet
from ldm_jax.weights import compvis
from ldm_jax.weights.foreign import refuse_unless, unusual
from ldm_jax.weights.rules import within

SCHEDULES = dict(linear="scaled_linear", sqrt_linear="linear", sqrt="sqrt", cosine="cosine")
NO_NULL_CLASS = 1000  # ImageNet's classes and nothing else; published models have 1001


def target(node) -> tuple[str, dict]:
    """(the class's bare name, its arguments) of a `target` and `params`."""
    return node["target"].rpartition(".")[2], node.get("params") or {}


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
    return model | unusual(
        Autoencoder,
        attention_kind="linear" if kind == "linear" else "softmax",
        image_channels=dd["in_channels"],
        resample_conv=dd.get("resamp_with_conv", True),
        tanh_out=dd.get("tanh_out", False),
    )


def unet(net, heads=0) -> tuple[dict, dict]:
    """The arguments of our UNet, and those of its table of keys."""
    refuse_unless(net, "unet_config", dims=(2,), use_fp16=(False,))
    transformer, split = net.get("use_spatial_transformer", False), heads_of(net, heads)
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
    model |= unusual(
        UNet,
        heads_up=split["heads_up"],
        # what a checkpoint's weights have decided, whatever the widths
        fill_heads=net.get("legacy", True),
        resample_conv=net.get("conv_resample", True),
        codebook_logits=net.get("n_embed") or 0,
    )
    table = dict(
        levels=len(model["mult"]),
        blocks=model["blocks"],
        depth=model["transformer_depth"] if transformer else 0,
        new_qkv_order=net.get("use_new_attention_order", False),
    )
    return model, table | split


def heads_of(net, heads=0) -> dict:
    """heads, head_channels and heads_up, as the official code at its last commit decides.

    None stands for those that do not count; `heads` overrules what the yaml says.

    The code changed twice, and the shapes of a checkpoint's arrays do not tell which version it was
    trained by. For a spatial transformer with `num_head_channels`, weights from before April
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


def conditioners(params, net, channels):
    """(config.conditioners, the table of their keys, notes)."""
    stage = params.get("cond_stage_config") or "__is_unconditional__"
    found, notes = {}, []
    if net.get("num_classes"):  # `adm`: added to the time embedding
        sizes = dict(num_classes=net["num_classes"], width=4 * net["model_channels"])
        found["class"] = dict(name="class", place="vector", **sizes)
        notes.append("label_emb has no null class: a row of zeros was added for guidance.")
        place = r"model\.diffusion_model\.", "conditioners_class/"
        return found, within([place], compvis.LABEL_EMBEDDING), notes
    name, args = target({"target": stage} if isinstance(stage, str) else stage)
    extra, rules = net["in_channels"] - channels, []
    if name in ENCODERS:
        field, kwargs, table = ENCODERS[name](args, notes)
        found[field] = kwargs
        rules = within([(r"cond_stage_model\.", f"conditioners_{field}/")], table)
    elif net.get("use_spatial_transformer") and net.get("context_dim"):
        # the embeddings are made outside: CLIP, or whatever the caller has
        sizes = dict(width=net["context_dim"], length=args.get("max_length", 77))
        found["tokens"] = dict(name="tokens", **sizes)
    if extra and "segmentation" not in found:
        if name == "__is_first_stage__" and extra == channels + 1:
            found["mask"] = dict(name="inpaint")
        else:
            found["low_res"] = dict(name="image", channels=extra)
    return found, rules, notes


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


ENCODERS = dict(
    ClassEmbedder=_class_embedder,
    BERTEmbedder=_token_embedder,
    TransformerEmbedder=_token_embedder,
    SpatialRescaler=_rescaler,
)
