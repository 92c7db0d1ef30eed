"""Tables for official checkpoints: CompVis/latent-diffusion and taming-transformers."""

import functools

import einops
import numpy as np

from ldm_jax.weights.rules import Rule, within

# What a checkpoint of a whole LDM holds beside weights: its schedule, by `register_buffer`.
BUFFERS = (
    "betas|alphas_cumprod(_prev)?|(sqrt|log)_one_minus_alphas_cumprod|sqrt_alphas_cumprod",
    "sqrt_recipm?1?_alphas_cumprod|posterior_(variance|log_variance_clipped|mean_coef[12])",
    "lvlb_weights|cond_ids|scale_factor|global_step",
)

# What a discriminator or a standalone first stage stores beside parameters of ours.
RUNNING_STATISTICS = (r".*\.(running_mean|running_var|num_batches_tracked|initialized)",)

BESIDE_AUTOENCODER = (r"loss\..*|model_ema\..*|global_step",)
BESIDE_DENOISER = (
    r"first_stage_model\..*|model_ema\..*",
    r"cond_stage_model\.transformer\.to_logits\..*",  # the official code does not use it either
)

_RES_AE = [
    Rule(r"norm(?P<i>[12])", r"norm_\g<i>", "norm"),
    Rule(r"conv(?P<i>[12])", r"conv_\g<i>", "conv"),
    Rule(r"nin_shortcut", "skip", "dense"),
]
_ATTENTION_AE = [
    Rule(r"norm", "norm", "norm"),
    *(Rule(name, "qkv", "dense", part=i, parts=3) for i, name in enumerate("qkv")),
    Rule(r"proj_out", "proj", "dense"),
    # attn_type: linear
    Rule(r"to_qkv", "qkv", "dense"),
    Rule(r"to_out", "proj", "dense"),
]
_HALF = r"(?P<half>encoder|decoder)\."
_LEVEL = _HALF + r"(?P<way>down|up)\.(?P<level>\d+)\."

AUTOENCODER = [
    *within(
        [(_LEVEL + r"block\.(?P<b>\d+)\.", r"\g<half>/\g<way>_\g<level>_block_\g<b>/")], _RES_AE
    ),
    *within([(_HALF + r"mid\.block_(?P<b>[12])\.", r"\g<half>/mid_block_\g<b>/")], _RES_AE),
    *within(
        [
            (_LEVEL + r"attn\.(?P<b>\d+)\.", r"\g<half>/\g<way>_\g<level>_attn_\g<b>/"),
            (_HALF + r"mid\.attn_1\.", r"\g<half>/mid_attn/"),
        ],
        _ATTENTION_AE,
    ),
    Rule(
        _LEVEL + r"(?P<change>downsample|upsample)\.conv",
        r"\g<half>/\g<way>_\g<level>_\g<change>/conv",
        "conv",
    ),
    Rule(_HALF + r"(?P<name>conv_in|conv_out)", r"\g<half>/\g<name>", "conv"),
    Rule(_HALF + r"norm_out", r"\g<half>/norm_out", "norm"),
    Rule(r"quant_conv", "to_latent", "dense"),
    Rule(r"post_quant_conv", "from_latent", "dense"),
    Rule(r"quantize\.embedding", "codebook", "array"),
]

CLASS_EMBEDDER = [Rule(r"embedding", "table", "table")]
# A row of zeros for the null class, where a table was trained without one.
with_null = lambda table: np.concatenate([table, np.zeros_like(table[:1])])
CLASS_EMBEDDER_WITHOUT_NULL = [Rule(r"embedding", "table", "table", reorder=with_null)]
LABEL_EMBEDDING = [Rule(r"label_emb", "table", "table", reorder=with_null)]

SPATIAL_RESCALER = [Rule(r"channel_mapper", "map", "dense")]


def transformer(depth):
    """The table of an x-transformers encoder: its layers alternate attention and MLP."""
    layers = [
        (rf"layers\.{2 * i + odd}\.", f"block_{i}/", odd) for i in range(depth) for odd in (0, 1)
    ]
    attend = [
        Rule(r"0", "norm_1", "norm"),
        *(Rule(rf"1\.to_{x}", f"attn/{x}", "dense") for x in "qkv"),
        Rule(r"1\.to_out", "attn/out", "dense"),
    ]
    mlp = [
        Rule(r"0", "norm_2", "norm"),
        Rule(r"1\.net\.0\.0", "mlp_in", "dense"),
        Rule(r"1\.net\.2", "mlp_out", "dense"),
    ]
    return [
        Rule(r"token_emb", "table", "table"),
        Rule(r"pos_emb\.emb", "positions", "array"),
        Rule(r"norm", "norm", "norm"),
        *(
            rule
            for key, path, odd in layers
            for rule in within([(r"attn_layers\." + key, path)], mlp if odd else attend)
        ),
    ]


_RES_UNET = [
    Rule(r"in_layers\.0", "norm_1", "norm"),
    Rule(r"in_layers\.2", "conv_1", "conv"),
    Rule(r"emb_layers\.1", "time", "dense"),
    Rule(r"out_layers\.0", "norm_2", "norm"),
    Rule(r"out_layers\.3", "conv_2", "conv"),
    Rule(r"skip_connection", "skip", "dense"),
]
_TRANSFORMER = [
    Rule(r"norm", "norm", "norm"),
    Rule(r"proj_(?P<way>in|out)", r"proj_\g<way>", "dense"),
    *within(
        [(r"transformer_blocks\.(?P<depth>\d+)\.", r"block_\g<depth>/")],
        [
            Rule(r"norm(?P<i>[123])", r"norm_\g<i>", "norm"),
            Rule(r"attn1\.to_(?P<x>[qkv])", r"self_attn/\g<x>", "dense"),
            Rule(r"attn1\.to_out\.0", "self_attn/out", "dense"),
            Rule(r"attn2\.to_(?P<x>[qkv])", r"cross_attn/\g<x>", "dense"),
            Rule(r"attn2\.to_out\.0", "cross_attn/out", "dense"),
            Rule(r"ff\.net\.0\.proj", "mlp/proj", "dense"),
            Rule(r"ff\.net\.2", "mlp/out", "dense"),
        ],
    ),
]


def unet(
    levels,
    blocks,
    *,
    heads=None,
    head_channels=None,
    heads_up=None,
    cross_attention=False,
    codebook_logits=0,
    new_qkv_order=False,
):
    """The table of a UNet of so many levels and blocks; heads tell how qkv columns interleave."""
    norm = Rule(r"norm", "norm", "norm")
    proj = Rule(r"proj_out", "proj", "dense")

    def attend(n):
        if cross_attention:
            return _TRANSFORMER
        order = None if new_qkv_order else functools.partial(_blocks_of_qkv, n, head_channels)
        return [norm, Rule(r"qkv", "qkv", "dense", reorder=order), proj]

    return [
        Rule(r"time_embed\.0", "time_1", "dense"),
        Rule(r"time_embed\.2", "time_2", "dense"),
        Rule(r"input_blocks\.0\.0", "conv_in", "conv"),
        *_way_down(levels, blocks, attend(heads)),
        *within(
            [(r"middle_block\.0\.", "mid_block_1/"), (r"middle_block\.2\.", "mid_block_2/")],
            _RES_UNET,
        ),
        *within([(r"middle_block\.1\.", "mid_attn/")], attend(heads)),
        *_way_up(levels, blocks, attend(heads_up or heads)),
        *_head(codebook_logits),
    ]


def discriminator(layers):
    """The table of a patch discriminator: conv, (conv, norm) x layers, conv."""
    norms = [Rule(rf"main\.{3 * i}", f"norm_{i}", "norm") for i in range(1, layers + 1)]
    norms += [  # ActNorm
        Rule(rf"main\.{3 * i}\.{leaf}", f"norm_{i}/{leaf}", "bare", reorder=np.ravel)
        for i in range(1, layers + 1)
        for leaf in ("loc", "scale")
    ]
    convs = [Rule(rf"main\.{max(3 * i - 1, 0)}", f"conv_{i}", "conv") for i in range(layers + 2)]
    return convs + norms


def _way_down(levels, blocks, attention):
    """input_blocks: the first convolution, then per level its blocks and a downsampling."""
    rules = []
    for level in range(levels):
        start = 1 + level * (blocks + 1)
        for i in range(blocks):
            key, path = rf"input_blocks\.{start + i}\.", f"down_{level}_"
            rules += within([(key + r"0\.", f"{path}block_{i}/")], _RES_UNET)
            rules += within([(key + r"1\.", f"{path}attn_{i}/")], attention)
        key, path = rf"input_blocks\.{start + blocks}\.0", f"down_{level}_downsample/"
        rules += [Rule(key + r"\.op", f"{path}conv", "conv")]
        rules += within([(key + r"\.", path)], _RES_UNET)
    return rules


def _way_up(levels, blocks, attention):
    """output_blocks: deepest level first, its upsampling in its last block, after any attention."""
    rules = []
    for level in range(levels):
        start = (levels - 1 - level) * (blocks + 1)
        for i in range(blocks + 1):
            key, path = rf"output_blocks\.{start + i}\.", f"up_{level}_"
            rules += within([(key + r"0\.", f"{path}block_{i}/")], _RES_UNET)
            rules += within([(key + r"1\.", f"{path}attn_{i}/")], attention)
        key, path = rf"output_blocks\.{start + blocks}\.[12]", f"up_{level}_upsample/"
        rules += [Rule(key + r"\.conv", f"{path}conv", "conv")]
        rules += within([(key + r"\.", path)], _RES_UNET)
    return rules


def _head(codebook_logits):
    if codebook_logits:
        return [
            Rule(r"id_predictor\.0", "norm_ids", "norm"),
            Rule(r"id_predictor\.1", "to_ids", "dense"),
        ]
    return [Rule(r"out\.0", "norm_out", "norm"), Rule(r"out\.2", "conv_out", "conv")]


def _blocks_of_qkv(heads, head_channels, array):
    """From [q | k | v] within each head, the official order, to heads within [q | k | v]."""
    channels = array.shape[0] // 3
    heads = channels // head_channels if head_channels else heads or 1
    return einops.rearrange(array, "(n three d) ... -> (three n d) ...", n=heads, three=3)
