"""diffusers' models: their vocabulary in ours, and tables of keys that work both ways.

A table depends on our config alone, so that reading (from_diffusers.py) and writing
(to_diffusers.py) share it.
"""

import itertools

from ldm_jax.weights.rules import Rule, within

# Of a UNet whose guidance is told: the layer that takes it, without `weight`.
GUIDANCE = "time_embedding.cond_proj"
# Where a run's class tokens stand in a pipeline's folder: diffusers has no such part.
CLASSES = "class_embedder"
RES = [
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
    """The table of AutoencoderKL and VQModel. model: our `config.model`."""
    rules = [
        Rule("quant_conv", "to_latent", "1x1"),
        Rule("post_quant_conv", "from_latent", "1x1"),
        Rule("quantize.embedding", "codebook", "array"),
        *within([("encoder.", "encoder/")], _network(model, _ATTENTION, ["down"])),
        *within([("decoder.", "decoder/")], _network(model, _ATTENTION, ["up"])),
    ]
    return within([("", "model/")], rules)


def unet_table(model) -> list[Rule]:
    """The table of UNet2DModel and UNet2DConditionModel, with `use_linear_projection: False`.

    It also reads weights with True, because a 1x1 convolution is a dense layer.
    """
    return within([("", "unet/")], _unet(model, ["down", "up"]))


def encoder_table(model) -> list[Rule]:
    """That of the way down and the middle alone, as a ControlNet has them; without "unet/"."""
    return _unet(model, ["down"])


def _unet(model, ways):
    attention = transformer(model["transformer_depth"]) if model["cross_attention"] else _ATTENTION
    times = [Rule(f"time_embedding.linear_{i}", f"time_{i}", "dense") for i in (1, 2)]
    return times + _network(model, attention, ways)


def transformer(depth) -> list[Rule]:
    """The table of a spatial transformer, whose keys are the same in official checkpoints."""
    places = [(f"transformer_blocks.{i}.", f"block_{i}/") for i in range(depth)]
    return [
        Rule("norm", "norm", "norm"),
        *(Rule(f"proj_{x}", f"proj_{x}", "1x1") for x in ("in", "out")),
        *within(places, _TRANSFORMER_BLOCK),
    ]


def bert_table(depth) -> list[Rule]:
    """The table of LDMBertModel."""
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


def _network(model, attention, ways):
    """What a UNet and each half of an autoencoder have. ways: "down", "up" or both."""
    middle = [(f"mid_block.resnets.{i}.", f"mid_block_{i + 1}/") for i in (0, 1)]
    rules = [
        Rule("conv_in", "conv_in", "conv"),
        Rule("conv_norm_out", "norm_out", "norm"),
        Rule("conv_out", "conv_out", "conv"),
        *within(middle, RES),
        *within([("mid_block.attentions.0.", "mid_attn/")], attention),
    ]
    levels = len(model["mult"])
    for way, level in itertools.product(ways, range(levels)):
        # up_blocks count from the lowest resolution, and have one residual block more
        at, more = (level, 0) if way == "down" else (levels - 1 - level, 1)
        key, path = f"{way}_blocks.{at}.", f"{way}_{level}_"
        rules.append(Rule(f"{key}{way}samplers.0.conv", f"{path}{way}sample/conv", "conv"))
        for i in range(model["blocks"] + more):
            rules += within([(f"{key}resnets.{i}.", f"{path}block_{i}/")], RES)
            rules += within([(f"{key}attentions.{i}.", f"{path}attn_{i}/")], attention)
    return rules
