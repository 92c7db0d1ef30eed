"""Diffusion transformers: the official checkpoints and diffusers' DiTTransformer2DModel."""

import re

import numpy as np

from ldm_jax.base import errors, tensorfile, tree
from ldm_jax.models.dit import DiT
from ldm_jax.weights.foreign import Foreign, defaults, refuse_unless, unusual
from ldm_jax.weights.rules import Rule, stacked, within

CLASS = "conditioners_class/table"
STACK = f"dit/{tree.STACK}/"
OFFICIAL_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # by width: S, B, L, XL
# The process of the official DiTs is ADM's (Dhariwal & Nichol 2021).
OFFICIAL_PROCESS = dict(schedule="linear", beta_start=1e-4, beta_end=0.02, prediction="eps")
OFFICIAL_KEYS = ("x_embedder.proj.weight", "y_embedder.embedding_table.weight", "pos_embed")
OFFICIAL_KEYS += ("final_layer.linear.weight",)
OFFICIAL_SCALE = 0.18215  # of Stable Diffusion's latents, which all of them denoise
VARIANCE_LEFT = (
    "The half of its output that is the learned variance is left out: no sampler here reads it."
)
# Transformer2DModel, as diffusers called it before 0.30, is many networks; a DiT leaves these out.
TRANSFORMER_UNSET = ("caption_channels", "cross_attention_dim", "num_vector_embeds")
_EMBEDDERS = re.compile(r"transformer_blocks\.(\d+)\.norm1\.emb\.(.+)")


def diffusers_table(model, outputs: int = 1) -> list[Rule]:
    """The table of DiTTransformer2DModel and its classes. model: our `config.model`.

    It writes the one embedding of the timestep and the class into every block, which diffusers
    keeps for each, unless `model["separate"]`. outputs: see `_first_of`.
    """
    depth, separate = model["depth"], model.get("separate", False)
    layer = [
        Rule("norm1.linear", "ada", "dense"),
        *(Rule(f"attn1.to_{x}", "attn/qkv", "dense", part=i, parts=3) for i, x in enumerate("qkv")),
        Rule("attn1.to_out.0", "attn/proj", "dense"),
        Rule("ff.net.0.proj", "mlp_in", "dense"),
        Rule("ff.net.2", "mlp_out", "dense"),
    ]
    name = "norm1.emb.timestep_embedder.linear"
    time = [Rule(f"{name}_1", "time/mlp_in", "dense"), Rule(f"{name}_2", "time/mlp_out", "dense")]
    table = Rule("norm1.emb.class_embedder.embedding_table", "", "table")
    rules = [
        Rule("pos_embed.proj", "dit/patch_in", "conv"),
        Rule("proj_out_1", "dit/out_ada", "dense"),
        Rule("proj_out_2", "dit/patch_out", "dense", reorder=_first_of(model, outputs)),
        *stacked(
            [("transformer_blocks.{i}.", STACK)], depth, [*layer, *(time if separate else [])]
        ),
    ]
    for i in range(depth):
        own = table._replace(part=i, parts=depth) if separate else table
        rules += within([(f"transformer_blocks.{i}.", CLASS)], [own])
        rules += within([(f"transformer_blocks.{i}.", "dit/")], [] if separate else time)
    return rules


def from_diffusers(config: dict, state: dict):
    """(config.model, {"class": its conditioner}, table, notes) of a DiTTransformer2DModel."""
    name = config["_class_name"]
    refuse_unless(config, name, norm_type=("ada_norm_zero",), attention_bias=(True,))
    refuse_unless(config, name, activation_fn=("gelu-approximate",))
    refuse_unless(config, name, norm_elementwise_affine=(False,))
    refuse_unless(config, name, **dict.fromkeys(TRANSFORMER_UNSET, (None,)))
    heads, channels = config.get("num_attention_heads", 16), config.get("in_channels", 4)
    depth = config.get("num_layers", 28)
    model = dict(
        name="dit",
        width=heads * config.get("attention_head_dim", 72),
        depth=depth,
        heads=heads,
        patch=config.get("patch_size", 2),
        freq_shift=1,
        **unusual(DiT, mlp_eps=config.get("norm_eps", 1e-5), separate=not _tied(state)),
    )
    outputs = (config.get("out_channels") or channels) // channels
    width = model["width"] * (depth if "separate" in model else 1)
    classes = dict(name="class", num_classes=config.get("num_embeds_ada_norm", 1000), width=width)
    notes = [VARIANCE_LEFT] if outputs > 1 else []
    return model, classes | {"place": "vector"}, diffusers_table(model, outputs), notes


def diffusers_config(model: dict, channels: int, size: int, classes: int) -> dict:
    """The config.json of a DiT. model: our `config.model`; size: of the latents."""
    model = defaults(DiT) | dict(model)
    for key, wanted in dict(cross_attention=False, qk_norm=False, rope=False, freq_shift=1).items():
        if model[key] != wanted:
            raise errors.UsageError(
                f"diffusers has no DiT with {key}={model[key]!r}: this run cannot be exported."
            )
    return {
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": model["heads"],
        "attention_head_dim": model["width"] // model["heads"],
        "in_channels": channels,
        "out_channels": channels,
        "num_layers": model["depth"],
        "sample_size": size,
        "patch_size": model["patch"],
        "num_embeds_ada_norm": classes,
        "norm_eps": model["mlp_eps"],
        "attention_bias": True,
        "activation_fn": "gelu-approximate",
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
    }


def open_checkpoint(checkpoint, heads: int = 0) -> Foreign:
    """An official checkpoint (DiT-XL-2-256x256.pt and the like); its sizes are its arrays'.

    heads: of a width that is none of the paper's.
    """
    state = tensorfile.read(checkpoint)
    if missing := [key for key in OFFICIAL_KEYS if key not in state]:
        raise errors.UsageError(f"{checkpoint} is no official DiT: it has no {missing[0]}.")
    kernel, depth = state["x_embedder.proj.weight"], 0
    while f"blocks.{depth}.attn.qkv.weight" in state:
        depth += 1
    width, channels, patch, _ = kernel.shape
    if not (heads := heads or OFFICIAL_HEADS.get(width, 0)):
        raise errors.UsageError(f"{checkpoint}: no published DiT is {width} wide; give --heads.")
    model = dict(name="dit", width=width, depth=depth, heads=heads, patch=patch)
    outputs = state["final_layer.linear.weight"].shape[0] // (patch**2 * channels)
    rows = len(state["y_embedder.embedding_table.weight"])
    side = patch * round(state["pos_embed"].size / width) ** 0.5
    classes = dict(name="class", num_classes=rows - 1, width=width, place="vector")
    changes = {
        "model": model,
        "conditioners": {"class": classes},
        "process": OFFICIAL_PROCESS,
        "data": {"size": int(side)},
        "latents": {"scale": OFFICIAL_SCALE},
        "optim": {"denoiser": {"ema": 0.0}},
    }
    notes = [
        "It denoises Stable Diffusion's latents: convert its VAE, and give --config.first_stage."
    ]
    notes += [VARIANCE_LEFT] if outputs > 1 else []
    tables = {"denoiser": (state, official_table(model, outputs), ("pos_embed",))}
    return Foreign("diffuse", changes, tables, first_stage=f"identity:{channels}", notes=notes)


def official_table(model, outputs: int = 1) -> list[Rule]:
    """The table of the official checkpoints and their classes."""
    layer = [
        Rule("adaLN_modulation.1", "ada", "dense"),
        Rule("attn.qkv", "attn/qkv", "dense"),
        Rule("attn.proj", "attn/proj", "dense"),
        Rule("mlp.fc1", "mlp_in", "dense"),
        Rule("mlp.fc2", "mlp_out", "dense"),
    ]
    return [
        Rule("x_embedder.proj", "dit/patch_in", "conv"),
        Rule("t_embedder.mlp.0", "dit/time/mlp_in", "dense"),
        Rule("t_embedder.mlp.2", "dit/time/mlp_out", "dense"),
        Rule("y_embedder.embedding_table", CLASS, "table"),
        Rule("final_layer.adaLN_modulation.1", "dit/out_ada", "dense"),
        Rule("final_layer.linear", "dit/patch_out", "dense", reorder=_first_of(model, outputs)),
        *stacked([("blocks.{i}.", STACK)], model["depth"], layer),
    ]


def _first_of(model, outputs):
    """Keeps the first of so many outputs of every pixel of a patch: the second is a variance."""

    def first(array):
        rows = array.reshape(model["patch"] ** 2, outputs, -1, *array.shape[1:])
        return rows[:, 0].reshape(-1, *array.shape[1:])

    return None if outputs == 1 else first


def _tied(state) -> bool:
    """Whether all blocks embed the timestep and the class alike, as in the published weights."""
    found = {match.groups(): a for k, a in state.items() if (match := _EMBEDDERS.fullmatch(k))}
    return all(np.array_equal(a, found["0", name]) for (_, name), a in found.items())
