"""The official checkpoints of U-ViT on latents (Bao et al. 2023), with classes or without."""

import numpy as np

from ldm_jax.base import errors, tensorfile, tree
from ldm_jax.weights import rules as rules_lib
from ldm_jax.weights.foreign import Foreign
from ldm_jax.weights.rules import Rule, stacked, within

HEADS = {512: 8, 768: 12, 1024: 16, 1152: 16}  # by width: S, M, L, H
KEYS = ("patch_embed.proj.weight", "pos_embed", "decoder_pred.weight", "mid_block.norm1.weight")
# Stable Diffusion's: train_ldm_discrete.py counts its timesteps from 1.
PROCESS = dict(schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction="eps")
SCALE = 0.18215  # of Stable Diffusion's latents


def open_checkpoint(checkpoint, heads: int = 0) -> Foreign:
    """A nnet_ema.pth of imagenet256_uvit_large and the like; its sizes are its arrays'.

    heads: of a width that is none of the paper's.
    """
    state = tensorfile.read(checkpoint)
    if missing := [key for key in KEYS if key not in state]:
        raise errors.UsageError(f"{checkpoint} is no official U-ViT: it has no {missing[0]}.")
    width, channels, patch, _ = state[KEYS[0]].shape
    if "context_embed.weight" in state:
        raise errors.UsageError(
            f"{checkpoint} is a U-ViT of captions; those of classes, and without conditions, are "
            f"read."
        )
    if channels == 3:
        raise errors.UsageError(
            f"{checkpoint} denoises pixels in continuous time, which no schedule here has; the "
            f"U-ViTs of latents are read."
        )
    if not (heads := heads or HEADS.get(width, 0)):
        raise errors.UsageError(f"{checkpoint}: no published U-ViT is {width} wide; give --heads.")
    half = 0
    while f"in_blocks.{half}.norm1.weight" in state:
        half += 1
    model = dict(name="uvit", width=width, depth=2 * half, heads=heads, patch=patch)
    model |= dict(time_mlp="time_embed.0.weight" in state, time_offset=1)
    model |= dict(conv_out="final_layer.weight" in state)
    conditioners = {}
    if (table := state.get("label_emb.weight")) is not None:
        conditioners["class"] = dict(name="class", num_classes=len(table) - 1, width=width)
    places = state["pos_embed"].shape[1] - 1 - len(conditioners)
    changes = {
        "model": model,
        "conditioners": conditioners,
        "process": PROCESS,
        "data": {"size": patch * round(places**0.5)},
        "latents": {"scale": SCALE},
        "optim": {"denoiser": {"ema": 0.0}},
    }
    notes = [
        "It denoises Stable Diffusion's latents: convert its VAE, and give --config.first_stage."
    ]
    apart = rules_lib.apart(state, r"(?P<at>.*attn)\.qkv\.weight", "{m[at]}.{name}.weight")
    tables = {"denoiser": (apart, table_of(half, bool(conditioners)), ())}
    return Foreign("diffuse", changes, tables, first_stage=f"identity:{channels}", notes=notes)


def table_of(half: int, classes: bool) -> list[Rule]:
    """The table of a U-ViT of `half` layers before its middle one, whose q, k and v are apart."""
    layer = [
        *(Rule(f"attn.{x}", f"attn/{x}", "dense") for x in "qkv"),
        Rule("attn.proj", "attn/out", "dense"),
        Rule("mlp.fc1", "mlp_in", "dense"),
        Rule("mlp.fc2", "mlp_out", "dense"),
        Rule("norm1", "norm_1", "norm"),
        Rule("norm2", "norm_2", "norm"),
    ]
    behind = [*layer, Rule("skip_linear", "skip", "dense")]
    ends = [
        Rule("patch_embed.proj", "patch_in", "conv"),
        Rule("time_embed.0", "time_in", "dense"),
        Rule("time_embed.2", "time_out", "dense"),
        Rule("norm", "norm_out", "norm"),
        Rule("decoder_pred", "patch_out", "dense"),
        Rule("final_layer", "conv_out", "conv"),
        Rule("pos_embed", "positions", "bare", reorder=_time_first if classes else None),
    ]
    inside = [("", "uvit/")]
    return [
        Rule("label_emb", "conditioners_class/table", "table"),
        *within(inside, ends),
        *within([("mid_block.", "uvit/middle/")], layer),
        *stacked([("in_blocks.{i}.", f"uvit/before/{tree.STACK}/")], half, layer),
        *stacked([("out_blocks.{i}.", f"uvit/behind/{tree.STACK}/")], half, behind),
    ]


def _time_first(places):
    """Theirs are those of the class, the timestep and the patches. [1, n, width] -> same."""
    return np.concatenate([places[:, 1:2], places[:, :1], places[:, 2:]], axis=1)
