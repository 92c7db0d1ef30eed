"""CLIP text encoders, in and out: a run holds their files unchanged.

A converted run holds text_encoder/ and tokenizer/, which its `clip` conditioner names, relative to
the run. Nothing of them is trained, so their files are copied and not converted.
"""

import json
import re
import shutil

import numpy as np
import safetensors.numpy

from ldm_jax.base import disk, errors, hub
from ldm_jax.models.clip import ClipText
from ldm_jax.weights import folders
from ldm_jax.weights.clip import FILES, weights_file
from ldm_jax.weights.foreign import defaults

VOCABULARY = ("vocab.json", "merges.txt")
FOLDERS = ("text_encoder", "tokenizer")
START, END = "<|startoftext|>", "<|endoftext|>"
# Fields of the `clip` conditioner, and what transformers' config calls them.
SIZES = dict(
    vocab_size="vocab_size",
    length="max_position_embeddings",
    width="hidden_size",
    depth="num_hidden_layers",
    heads="num_attention_heads",
    activation="hidden_act",
)
TOKENS = {"bos": "start", "eos": "end", "pad": "pad"}


def of_pipeline(folder) -> tuple[dict, dict] | None:
    """(the `clip` conditioner, its files in the run) of a pipeline's folder.

    The files are {place in the run: file of the pipeline, or text}. None where the pipeline lacks
    CLIP's text encoder or its vocabulary.
    """
    encoder, tokenizer = (folder / name for name in FOLDERS)
    config = encoder / "config.json"
    own = folders.read_json(config) if disk.there(config) else {}
    words = any((tokenizer / name).is_file() for name in (VOCABULARY[0], "tokenizer.json"))
    if own.get("model_type") != "clip_text_model" or not words:
        return None
    weights = weights_file(encoder)
    if weights == encoder:
        raise errors.UsageError(f"{encoder} holds no {' or '.join(FILES)}.")
    sizes = {ours: own[theirs] for ours, theirs in SIZES.items()}
    return _conditioner(sizes, tokenizer, {f"{FOLDERS[0]}/{weights.name}": weights})


def inside(state: dict, tokenizer) -> tuple[dict, dict]:
    """As `of_pipeline`, for an encoder within a larger state dict; its weights are given as bytes.

    state: with the keys of Hugging Face's CLIPTextModel. The sizes are those of its arrays; heads
      are 64 wide, as in OpenAI's models. tokenizer: the folder of its vocabulary, or its name.
    """
    shape = lambda key: state[f"text_model.{key}"].shape
    vocab_size, width = shape("embeddings.token_embedding.weight")
    layers = {m[1] for key in state if (m := re.match(r"text_model\.encoder\.layers\.(\d+)", key))}
    sizes = dict(
        vocab_size=vocab_size,
        length=shape("embeddings.position_embedding.weight")[0],
        width=width,
        depth=len(layers),
        heads=max(1, width // 64),
        activation="quick_gelu",
    )
    weights = safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in state.items()})
    tokenizer = hub.folder(tokenizer, *VOCABULARY, "tokenizer*.json", "special_tokens_map.json")
    return _conditioner(sizes, tokenizer, {f"{FOLDERS[0]}/{FILES[0]}": weights})


def _conditioner(sizes, tokenizer, weights):
    vocabulary, merges = _vocabulary(tokenizer)
    if missing := [token for token in (START, END) if token not in vocabulary]:
        raise errors.UsageError(f"{tokenizer} is not CLIP's tokenizer: it lacks {missing[0]}.")
    conditioner = dict(
        name="clip",
        weights=FOLDERS[0],
        tokenizer=FOLDERS[1],
        **sizes,
        start=vocabulary[START],
        end=vocabulary[END],
        pad=vocabulary[_padding(tokenizer)],
        mask_padding=False,  # padding is attended to, as in all of these models
    )
    words, lines = (f"{FOLDERS[1]}/{name}" for name in VOCABULARY)
    return conditioner, weights | {
        words: json.dumps(vocabulary, ensure_ascii=False),
        lines: "".join(f"{line}\n" for line in ("#version: 0.2", *merges)),
    }


def write(folder, kwargs: dict) -> dict:
    """text_encoder/ and tokenizer/ of a run's conditioner; returns their lines of model_index.json.

    What the run was trained with is copied; the configs are made anew where there are none.
    """
    kwargs = defaults(ClipText) | kwargs
    encoder, tokenizer = (folder / name for name in FOLDERS)
    weights = weights_file(kwargs["weights"])
    if weights.name not in FILES:
        raise errors.UsageError(
            f"The text encoder {weights} is not in Hugging Face's layout ({' or '.join(FILES)}): "
            "this run cannot be exported with it."
        )
    vocabulary = [hub.folder(kwargs["tokenizer"], *VOCABULARY) / name for name in VOCABULARY]
    tokens = {i: token for token, i in folders.read_json(vocabulary[0]).items()}
    special = {"bos_token": START, "eos_token": END, "unk_token": END}
    special["pad_token"] = tokens[kwargs["pad"]]
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": kwargs["length"], **special}
    folders.write_json(tokenizer / "tokenizer_config.json", about)
    folders.write_json(tokenizer / "special_tokens_map.json", special)
    config = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        **{theirs: kwargs[ours] for ours, theirs in SIZES.items()},
        "intermediate_size": 4 * kwargs["width"],
        "projection_dim": kwargs["width"],
        **{f"{token}_token_id": kwargs[ours] for token, ours in TOKENS.items()},
    }
    folders.write_json(encoder / "config.json", config)
    shutil.copyfile(weights, encoder / weights.name)
    for file in vocabulary:
        shutil.copyfile(file, tokenizer / file.name)
    parts = zip(FOLDERS, ("CLIPTextModel", "CLIPTokenizer"), strict=True)
    return {name: ["transformers", kind] for name, kind in parts}


def _vocabulary(tokenizer) -> tuple[dict, list[str]]:
    """{token: id} and the merges, of the two files or of the one that later versions write."""
    words, merges = (tokenizer / name for name in VOCABULARY)
    if disk.there(words):
        lines = disk.read_text(merges).splitlines()
        return folders.read_json(words), [x for x in lines if x and x[:8] != "#version"]
    model = folders.read_json(tokenizer / "tokenizer.json")["model"]
    merges = [x if isinstance(x, str) else " ".join(x) for x in model["merges"]]
    return model["vocab"], merges


def _padding(tokenizer) -> str:
    """The token that a tokenizer fills up with: <|endoftext|>, or what its files say."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        said = folders.read_json(tokenizer / name) if disk.there(tokenizer / name) else {}
        if token := said.get("pad_token"):
            return token["content"] if isinstance(token, dict) else token
    return END
