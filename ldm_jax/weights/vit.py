"""DINOv2's published weights, and both sides of CLIP, by their names in the files."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.base import errors, tensorfile
from ldm_jax.models import vit
from ldm_jax.weights import clip, rules
from ldm_jax.weights.rules import Rule

_DINOV2 = [  # of a layer, once q, k and v are apart
    *(Rule(f"norm{i}", f"norm_{i}", "norm") for i in (1, 2)),
    *(Rule(f"attn.{name}", name, "dense") for name in "qkv"),
    Rule("attn.proj", "out", "dense"),
    *(Rule(f"mlp.fc{i}", f"mlp_{name}", "dense") for i, name in ((1, "in"), (2, "out"))),
    *(Rule(f"ls{i}.gamma", f"scale_{i}", "bare") for i in (1, 2)),
]


def read_dinov2(path) -> dict:
    """Params of a models.vit.ViT in the style DINOV2, from Meta's own file, whatever its size.

    Raises:
      UsageError: no file, or one that holds something else.
    """
    with errors.of("DINOv2's weights (dinov2:l, dinov2:b fetch Meta's dinov2_vit*14_pretrain.pth)"):
        return dinov2(tensorfile.read(path))


def dinov2(state: dict) -> dict:
    """A state dict of that layout -> params."""
    state = rules.apart(state, r"(.*attn\.)qkv\.(weight|bias)", "{m[1]}{name}.{m[2]}")
    depth = _depth(state, r"blocks\.(\d+)\.")
    layers = [(f"blocks.{i}.", f"block_{i}/") for i in range(depth)]
    flat = lambda array: array.reshape(-1, array.shape[-1])
    table = [
        Rule("cls_token", "token", "bare", reorder=np.ravel),
        Rule("pos_embed", "positions", "bare", reorder=flat),
        Rule("patch_embed.proj", "patch", "conv"),
        Rule("norm", "norm", "norm"),
        *rules.within(layers, _DINOV2),
    ]
    keys = "patch_embed.proj.weight", "pos_embed"
    return rules.convert(state, table, ("mask_token",), _shapes(vit.DINOV2, state, *keys, depth))


def read_clip(path) -> dict:
    """{"image": params of a ViT, "image_out": [w, d], "text": params, "text_out": [v, d]}.

    path: Hugging Face's file of a whole CLIP, the folder of one, or a name: clip:l14-336.

    Raises:
      UsageError: as read_dinov2.
    """
    with errors.of("CLIP's weights, both sides (clip:l14-336, clip:b32 fetch Hugging Face's file)"):
        return both_sides(tensorfile.read(clip.weights_file(path)))


def both_sides(state: dict) -> dict:
    """A state dict of that layout -> what read_clip says."""
    image = rules.under("vision_model.", state)
    if lost := {"visual_projection.weight", "text_projection.weight"} - state.keys():
        raise errors.UsageError(f"it lacks {', '.join(sorted(lost))}.")
    depth = _depth(image, r"encoder\.layers\.(\d+)\.")
    layers = [(f"encoder.layers.{i}.", f"block_{i}/") for i in range(depth)]
    table = [
        Rule("embeddings.class_embedding", "token", "bare"),
        Rule("embeddings.position_embedding", "positions", "array"),
        Rule("embeddings.patch_embedding", "patch", "conv"),
        Rule("pre_layrnorm", "norm_0", "norm"),  # spelt so there
        Rule("post_layernorm", "norm", "norm"),
        *rules.within(layers, clip.LAYER),
    ]
    keys = "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"
    shapes = _shapes(vit.CLIP, image, *keys, depth)
    text_depth = _depth(state, r"text_model\.encoder\.layers\.(\d+)\.")
    return {
        "image": rules.convert(image, table, (r"embeddings\.position_ids",), shapes),
        "image_out": np.asarray(state["visual_projection.weight"], np.float32).T,
        "text": clip.from_state(rules.under("text_model.", state), text_depth),
        "text_out": np.asarray(state["text_projection.weight"], np.float32).T,
    }


def _depth(state, pattern: str) -> int:
    return 1 + max((int(m[1]) for key in state if (m := re.match(pattern, key))), default=-1)


def _shapes(style, state, patch: str, positions: str, depth: int):
    """The (abstract) params of the ViT whose sizes these arrays of the file have."""
    if lost := {patch, positions} - state.keys():
        raise errors.UsageError(f"it lacks {', '.join(sorted(lost))}.")
    width, _, side, _ = state[patch].shape
    grid = math.isqrt(state[positions].shape[-2] - 1)
    network = vit.ViT(style, side, width, depth, grid)
    image = jax.ShapeDtypeStruct((1, grid * side, grid * side, 3), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), image)["params"]
