"""What diffusers' config.json files say, in our words; other values of a key are refused."""

from ldm_jax.base import errors
from ldm_jax.models.unet import UNet
from ldm_jax.weights.foreign import refuse_unless, unusual

# What a UNet's config may not set, and what it may not switch on.
UNSET = ("class_embed_type", "time_embedding_dim", "attn_norm_num_groups")
UNSET += ("encoder_hid_dim_type", "addition_embed_type", "timestep_post_act")
OFF = ("center_input_sample", "class_embeddings_concat")
OFF += ("dual_cross_attention", "only_cross_attention")


def unet_model(config) -> dict:
    """UNet2DModel's or UNet2DConditionModel's config as the arguments of our UNet."""
    name, cross = config["_class_name"], config["_class_name"] == "UNet2DConditionModel"
    middle = "UNetMidBlock2DCrossAttn" if cross else "UNetMidBlock2D"
    refuse_unless(config, name, **dict.fromkeys(UNSET, (None,)), **dict.fromkeys(OFF, (False,)))
    refuse_unless(config, name, act_fn=("silu",), time_embedding_type=("positional",))
    refuse_unless(config, name, mid_block_scale_factor=(1,), add_attention=(True,))
    refuse_unless(config, name, downsample_type=("conv",), upsample_type=("conv",))
    refuse_unless(config, name, resnet_time_scale_shift=("default", "scale_shift"))
    refuse_unless(config, name, mid_block_type=(middle,), attention_type=("default",))
    refuse_unless(config, name, conv_in_kernel=(3,), conv_out_kernel=(3,))
    widths = config["block_out_channels"]
    model = dict(
        width=widths[0],
        mult=multiples(widths),
        blocks=_one(config, "layers_per_block", 2),
        attention=attended(config, "DownBlock2D", "UpBlock2D"),
        **_heads(config, widths, cross),
        transformer_depth=_one(config, "transformer_layers_per_block", 1),
        cross_attention=cross,
        dropout=config.get("dropout", 0.0),
        scale_shift=config.get("resnet_time_scale_shift") == "scale_shift",
        groups=config.get("norm_num_groups", 32),
    )
    return model | unusual(
        UNet,
        eps=config.get("norm_eps", 1e-5),
        sin_first=not config.get("flip_sin_to_cos", True),
        freq_shift=config.get("freq_shift", 0),
        asymmetric=config.get("downsample_padding", 1) == 0,
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


def attended(config, down, up) -> tuple:
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


def multiples(widths) -> tuple:
    if any(width % widths[0] for width in widths):
        raise errors.UsageError(f"block_out_channels={widths} must be multiples of the first.")
    return tuple(width // widths[0] for width in widths)


def _one(config, key, default):
    value = config.get(key, default)
    values = {value} if isinstance(value, int) else set(value)
    if len(values) > 1:
        raise errors.UsageError(f"{config['_class_name']}: {key}={value} differs between levels.")
    return values.pop()
