"""CLIP's text encoder, read from Hugging Face's, OpenAI's or OpenCLIP's file."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.base import errors, hub, tensorfile, tree
from ldm_jax.models.clip import ClipText
from ldm_jax.weights import rules
from ldm_jax.weights.rules import Rule

FILES = ("model.safetensors", "pytorch_model.bin")
_TABLE = "token_embedding.weight"
_LAYER = [
    *(Rule(f"layer_norm{i}", f"norm_{i}", "norm") for i in (1, 2)),
    *(Rule(f"self_attn.{name}_proj", name, "dense") for name in ("q", "k", "v", "out")),
    *(Rule(f"mlp.fc{i}", f"mlp_{name}", "dense") for i, name in ((1, "in"), (2, "out"))),
]
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
    file, ids = weights_file(conditioner.weights), jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(lambda: conditioner.encoder().init(jax.random.key(0), ids))["params"]
    params = from_state(tensorfile.read(file), conditioner.depth, file)
    found = dict(tree.named_leaves(params))
    for name, leaf in tree.named_leaves(shapes):
        if found[name].shape != leaf.shape:
            raise errors.UsageError(
                f"{file} is another text encoder than the clip conditioner's: {name} is "
                f"{found[name].shape}, not {leaf.shape}; set its vocab_size, length and width."
            )
    return {"encoder": params}


def weights_file(path: str) -> pathlib.Path:
    """The file of weights that `path` is, or that lies in it under Hugging Face's names."""
    if not path:
        raise errors.UsageError(
            "The clip conditioner's weights are empty: give a text encoder's, a file or "
            "hf:openai/clip-vit-large-patch14, as --config.conditioners.NAME.weights=FILE."
        )
    path = pathlib.Path(hub.folder(path, FILES[0]))
    return next((path / name for name in FILES if (path / name).is_file()), path)


def table(depth: int):
    """Hugging Face's names, literal."""
    layers = [(f"encoder.layers.{i}.", f"block_{i}/") for i in range(depth)]
    return [
        Rule("embeddings.token_embedding", "table", "table"),
        Rule("embeddings.position_embedding", "positions", "array"),
        Rule("final_layer_norm", "norm", "norm"),
        *rules.within(layers, _LAYER),
    ]


def from_state(state: dict, depth: int, file="The state") -> dict:
    """Params of a `ClipTransformer` from a state dict in either layout, whatever lies around it."""
    ends = [key for key in state if key.endswith(_TABLE)]
    prefix = ends[0].removesuffix(_TABLE).removesuffix("embeddings.") if ends else ""
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    own = own if f"embeddings.{_TABLE}" in own else _as_hugging_face(own)
    wanted = {f"{rule.key}.weight" for rule in table(depth)}
    wanted |= {f"{rule.key}.bias" for rule in table(depth) if rule.kind in ("norm", "dense")}
    if missing := sorted(wanted - own.keys()):
        raise errors.UsageError(
            f"{file} lacks {prefix}{missing[0]}, which a CLIP text encoder of depth={depth} has."
        )
    if f"encoder.layers.{depth}.layer_norm1.weight" in own:
        raise errors.UsageError(
            f"{file} has more layers than the clip conditioner's depth={depth}."
        )
    return rules.convert({key: own[key] for key in wanted}, table(depth))


def _as_hugging_face(state: dict) -> dict:
    renamed = {}
    for key, value in state.items():
        for pattern, name in _OPENAI:
            key = re.sub(pattern, name, key)
        if match := re.fullmatch(r"(.*self_attn\.)in_proj_(weight|bias)", key):
            parts = zip("qkv", np.split(np.asarray(value), 3))
            renamed |= {f"{match[1]}{n}_proj.{match[2]}": part for n, part in parts}
        else:
            renamed[key] = value
    return renamed
