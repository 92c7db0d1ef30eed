"""CLIP's text encoder, read from Hugging Face's, OpenAI's or OpenCLIP's file."""

import pathlib
import re

import jax
import jax.numpy as jnp

from ldm_jax.base import errors, hub, tensorfile
from ldm_jax.models.clip import ClipText
from ldm_jax.weights import rules
from ldm_jax.weights.rules import Rule

SIZES = ("vocab_size", "length", "width", "depth")  # which a file's arrays have to have
FILES = ("model.safetensors", "pytorch_model.bin")
_TABLE = "token_embedding.weight"
LAYER = [
    *(Rule(f"layer_norm{i}", f"norm_{i}", "norm") for i in (1, 2)),
    *(Rule(f"self_attn.{name}_proj", name, "dense") for name in ("q", "k", "v", "out")),
    *(Rule(f"mlp.fc{i}", f"mlp_{name}", "dense") for i, name in ((1, "in"), (2, "out"))),
]
_AROUND = (r"(?!embeddings\.|encoder\.layers\.|final_layer_norm\.).*", r"embeddings\.position_ids")
_OPENAI = (  # OpenAI's and OpenCLIP's names, to Hugging Face's
    (r"^token_embedding", "embeddings.token_embedding"),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^ln_final", "final_layer_norm"),
    (r"^transformer\.resblocks", "encoder.layers"),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.c_fc\.", ".fc1."),
    (r"\.c_proj\.", ".fc2."),
)


def read(conditioner: ClipText) -> dict:
    """{"encoder": params} of a `clip` conditioner's file.

    Raises:
      UsageError: no file, or one that does not fit the conditioner's sizes.
    """
    conditioner.check()
    file = weights_file(conditioner.weights)
    state, ids = tensorfile.read(file), jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(lambda: conditioner.encoder().init(jax.random.key(0), ids))["params"]
    sizes = ", ".join(f"{k}={getattr(conditioner, k)}" for k in SIZES)
    with errors.of(f"The clip conditioner's {sizes} have to be those of {file}"):
        return {"encoder": from_state(state, conditioner.depth, shapes)}


def weights_file(path) -> pathlib.Path:
    """The file of weights in a folder, under one of Hugging Face's names; else `path` itself.

    Of a public name, FILES[0] is fetched.
    """
    path = hub.folder(path, FILES[0])
    return next((path / name for name in FILES if (path / name).is_file()), path)


def table(depth: int):
    """The table of Hugging Face's names, which are literal."""
    layers = [(f"encoder.layers.{i}.", f"block_{i}/") for i in range(depth)]
    return [
        Rule("embeddings.token_embedding", "table", "table"),
        Rule("embeddings.position_embedding", "positions", "array"),
        Rule("final_layer_norm", "norm", "norm"),
        *rules.within(layers, LAYER),
    ]


def from_state(state: dict, depth: int, expected=None) -> dict:
    """Params of a `TokenTransformer` from a state dict in either layout, whatever lies around it.

    expected: the (abstract) params, for `rules.convert` to match.
    """
    ends = [key for key in state if key.endswith(_TABLE)]
    prefix = ends[0].removesuffix(_TABLE).removesuffix("embeddings.") if ends else ""
    own = rules.under(prefix, state)
    own = own if f"embeddings.{_TABLE}" in own else _as_hugging_face(own)
    return rules.convert(own, table(depth), _AROUND, expected)


def _as_hugging_face(state: dict) -> dict:
    renamed = {}
    for key, value in state.items():
        for pattern, name in _OPENAI:
            key = re.sub(pattern, name, key)
        renamed[key] = value
    fused = r"(.*self_attn\.)in_proj_(weight|bias)"
    return rules.apart(renamed, fused, "{m[1]}{name}_proj.{m[2]}")
