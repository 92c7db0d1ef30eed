"""Tables for official checkpoints: CompVis/latent-diffusion and taming-transformers."""

import functools

import einops
import numpy as np

from ldm_jax.weights import diffusers
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

_RES_AE = [*diffusers.RES, Rule("nin_shortcut", "skip", "dense")]
_ATTENTION_AE = [
    Rule("norm", "norm", "norm"),
    *(Rule(name, "qkv", "dense", part=i, parts=3) for i, name in enumerate("qkv")),
    Rule("proj_out", "proj", "dense"),
    # attn_type: linear
    Rule("to_qkv", "qkv", "dense"),
    Rule("to_out", "proj", "dense"),
]
_HALF = r"(encoder|decoder)\."
_LEVEL = _HALF + r"(down|up)\.(\d+)\."
AUTOENCODER = [
    *within(
        [
            (_LEVEL + r"block\.(\d+)\.", r"\1/\2_\3_block_\4/"),
            (_HALF + r"mid\.block_([12])\.", r"\1/mid_block_\2/"),
        ],
        _RES_AE,
    ),
    *within(
        [
            (_LEVEL + r"attn\.(\d+)\.", r"\1/\2_\3_attn_\4/"),
            (_HALF + r"mid\.attn_1\.", r"\1/mid_attn/"),
        ],
        _ATTENTION_AE,
    ),
    Rule(_LEVEL + r"(downsample|upsample)\.conv", r"\1/\2_\3_\4/conv", "conv"),
    Rule(_HALF + "(conv_in|conv_out)", r"\1/\2", "conv"),
    Rule(_HALF + "norm_out", r"\1/norm_out", "norm"),
    Rule("quant_conv", "to_latent", "dense"),
    Rule("post_quant_conv", "from_latent", "dense"),
    Rule(r"quantize\.embedding", "codebook", "array"),
]

CLASS_EMBEDDER = [Rule("embedding", "table", "table")]
# A row of zeros for the null class, where a table was trained without one.
with_null = lambda table: np.concatenate([table, np.zeros_like(table[:1])])
CLASS_EMBEDDER_WITHOUT_NULL = [Rule("embedding", "table", "table", reorder=with_null)]
LABEL_EMBEDDING = [Rule("label_emb", "table", "table", reorder=with_null)]

SPATIAL_RESCALER = [Rule("channel_mapper", "map", "dense")]


def transformer(depth):
    """The table of an x-transformers encoder: its layers alternate attention and MLP."""
    places = [(rf"attn_layers\.layers\.{i}\.", f"block_{i // 2}/") for i in range(2 * depth)]
    attend = [
        Rule("0", "norm_1", "norm"),
        *(Rule(rf"1\.to_{x}", f"attn/{x}", "dense") for x in ("q", "k", "v", "out")),
    ]
    mlp = [
        Rule("0", "norm_2", "norm"),
        Rule(r"1\.net\.0\.0", "mlp_in", "dense"),
        Rule(r"1\.net\.2", "mlp_out", "dense"),
    ]
    return [
        Rule("token_emb", "table", "table"),
        Rule(r"pos_emb\.emb", "positions", "array"),
        Rule("norm", "norm", "norm"),
        *within(places[::2], attend),
        *within(places[1::2], mlp),
    ]


_RES_UNET = [
    Rule(r"in_layers\.0", "norm_1", "norm"),
    Rule(r"in_layers\.2", "conv_1", "conv"),
    Rule(r"emb_layers\.1", "time", "dense"),
    Rule(r"out_layers\.0", "norm_2", "norm"),
    Rule(r"out_layers\.3", "conv_2", "conv"),
    Rule("skip_connection", "skip", "dense"),
]


def unet(
    levels, blocks, *, heads=None, head_channels=None, heads_up=None, depth=0, new_qkv_order=False
):
    """The table of a UNet of so many levels and blocks; heads tell how qkv columns interleave.

    depth: of the transformers that stand in the place of its attention; 0: none do.
    """

    def attend(n):
        if depth:
            return diffusers.transformer(depth)
        order = None if new_qkv_order else functools.partial(_blocks_of_qkv, n, head_channels)
        return [
            Rule("norm", "norm", "norm"),
            Rule("qkv", "qkv", "dense", reorder=order),
            Rule("proj_out", "proj", "dense"),
        ]

    rules = [
        *(Rule(rf"time_embed\.{2 * i}", f"time_{i + 1}", "dense") for i in (0, 1)),
        Rule(r"input_blocks\.0\.0", "conv_in", "conv"),
        *within([(rf"middle_block\.{2 * i}\.", f"mid_block_{i + 1}/") for i in (0, 1)], _RES_UNET),
        *within([(r"middle_block\.1\.", "mid_attn/")], attend(heads)),
        Rule(r"out\.0", "norm_out", "norm"),
        Rule(r"out\.2", "conv_out", "conv"),
        # in the place of the last two, where the output is logits over a codebook
        Rule(r"id_predictor\.0", "norm_ids", "norm"),
        Rule(r"id_predictor\.1", "to_ids", "dense"),
    ]
    for level in range(levels):
        # On the way down each level has its blocks and then a downsampling; on the way up, which
        # begins with the deepest level, the upsampling stands in a level's last block.
        down, up = 1 + level * (blocks + 1), (levels - 1 - level) * (blocks + 1)
        for side, way, start, count, place, attention in (
            ("input", "down", down, blocks, "0", attend(heads)),
            ("output", "up", up, blocks + 1, "[12]", attend(heads_up or heads)),
        ):
            key, path = rf"{side}_blocks\.", f"{way}_{level}_"
            for i in range(count):
                rules += within([(rf"{key}{start + i}\.0\.", f"{path}block_{i}/")], _RES_UNET)
                rules += within([(rf"{key}{start + i}\.1\.", f"{path}attn_{i}/")], attention)
            key, path = rf"{key}{start + blocks}\.{place}\.", f"{path}{way}sample/"
            rules += [Rule(key + "(?:op|conv)", f"{path}conv", "conv")]
            rules += within([(key, path)], _RES_UNET)
    return rules


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


def _blocks_of_qkv(heads, head_channels, array):
    """From [q | k | v] within each head, the official order, to heads within [q | k | v]."""
    channels = array.shape[0] // 3
    heads = channels // head_channels if head_channels else heads or 1
    return einops.rearrange(array, "(n three d) ... -> (three n d) ...", n=heads, three=3)
