"""CLIP text encoders, in and out: their files lie in the run as they came.

A converted run holds text_encoder/ and tokenizer/, which its `clip` conditioner names, relative to
the run. Nothing of them is trained, so their files are copied and not converted.
"""

import dataclasses
import json
import pathlib
import re
import shutil

import numpy as np
import safetensors.numpy

from ldm_jax.base import errors
from ldm_jax.models.clip import ClipText
from ldm_jax.weights.clip import FILES

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


def is_clip(folder) -> bool:
    """Whether a pipeline has CLIP's text encoder and its vocabulary."""
    config = folder / FOLDERS[0] / "config.json"
    if not config.is_file() or _read(config).get("model_type") != "clip_text_model":
        return False
    return any((folder / FOLDERS[1] / name).is_file() for name in ("vocab.json", "tokenizer.json"))


def conditioner(folder) -> dict:
    """The `clip` conditioner of a pipeline's folder; padding is attended to, as in all of them."""
    own, tokenizer = _read(folder / FOLDERS[0] / "config.json"), folder / FOLDERS[1]
    return _conditioner({ours: own[theirs] for ours, theirs in SIZES.items()}, tokenizer)


def files(folder) -> dict:
    """{place in the run: file of the pipeline, or text}: the weights and the vocabulary."""
    encoder, tokenizer = (folder / name for name in FOLDERS)
    weights = _weights(encoder)
    if weights is None:
        raise errors.UsageError(f"{encoder} holds no {' or '.join(FILES)}.")
    return {f"{FOLDERS[0]}/{weights.name}": weights, **_vocabulary_files(tokenizer)}


def inside(state: dict, tokenizer) -> tuple[dict, dict]:
    """(the `clip` conditioner, its files in the run) of an encoder within a larger state dict.

    state: with the keys of Hugging Face's CLIPTextModel, OpenAI's weights: its sizes are those of
      its arrays, its heads 64 wide. tokenizer: the folder of its vocabulary.
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
    tokenizer = pathlib.Path(tokenizer)
    weights = safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in state.items()})
    written = {f"{FOLDERS[0]}/{FILES[0]}": weights, **_vocabulary_files(tokenizer)}
    return _conditioner(sizes, tokenizer), written


def _conditioner(sizes, tokenizer) -> dict:
    vocabulary, _ = _vocabulary(tokenizer)
    if missing := [token for token in (START, END) if token not in vocabulary]:
        raise errors.UsageError(f"{tokenizer} is not CLIP's tokenizer: it lacks {missing[0]}.")
    return dict(
        name="clip",
        weights=FOLDERS[0],
        tokenizer=FOLDERS[1],
        **sizes,
        start=vocabulary[START],
        end=vocabulary[END],
        pad=vocabulary[_padding(tokenizer)],
        mask_padding=False,
    )


def _vocabulary_files(tokenizer) -> dict:
    vocabulary, merges = _vocabulary(tokenizer)
    return {
        f"{FOLDERS[1]}/vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        f"{FOLDERS[1]}/merges.txt": "".join(f"{line}\n" for line in ("#version: 0.2", *merges)),
    }


def write(folder, kwargs: dict) -> dict:
    """text_encoder/ and tokenizer/ of a run's conditioner; returns their lines of model_index.json.

    What the run was trained with is copied; the configs are made anew where there are none.
    """
    kwargs = {field.name: field.default for field in dataclasses.fields(ClipText)} | kwargs
    encoder, tokenizer = (folder / name for name in FOLDERS)
    source = pathlib.Path(kwargs["weights"])
    weights = _weights(source) or source
    if weights.name not in FILES:
        raise errors.UsageError(
            f"The text encoder {weights} is not in Hugging Face's layout ({' or '.join(FILES)}): "
            "this run cannot be exported with it."
        )
    for place in (encoder, tokenizer):
        place.mkdir(parents=True)
    shutil.copyfile(weights, encoder / weights.name)
    for name in VOCABULARY:
        shutil.copyfile(pathlib.Path(kwargs["tokenizer"]) / name, tokenizer / name)
    tokens = {i: token for token, i in _read(tokenizer / "vocab.json").items()}
    special = {"bos_token": START, "eos_token": END, "unk_token": END}
    special["pad_token"] = tokens[kwargs["pad"]]
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": kwargs["length"], **special}
    for file, content in (
        (encoder / "config.json", _encoder_config(kwargs)),
        (tokenizer / "tokenizer_config.json", about),
        (tokenizer / "special_tokens_map.json", special),
    ):
        file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    parts = zip(FOLDERS, ("CLIPTextModel", "CLIPTokenizer"), strict=True)
    return {name: ["transformers", kind] for name, kind in parts}


def _encoder_config(kwargs) -> dict:
    """What transformers' CLIPTextModel is built from."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        **{theirs: kwargs[ours] for ours, theirs in SIZES.items()},
        "intermediate_size": 4 * kwargs["width"],
        "projection_dim": kwargs["width"],
        **{f"{token}_token_id": kwargs[ours] for token, ours in TOKENS.items()},
    }


def _weights(folder):
    """The file of weights in a folder of Hugging Face's, or None."""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def _vocabulary(tokenizer) -> tuple[dict, list[str]]:
    """{token: id} and the merges, of the two files or of the one that later versions write."""
    if (tokenizer / "vocab.json").is_file():
        lines = (tokenizer / "merges.txt").read_text(encoding="utf-8").splitlines()
        return _read(tokenizer / "vocab.json"), [x for x in lines if x and x[:8] != "#version"]
    model = _read(tokenizer / "tokenizer.json")["model"]
    merges = [x if isinstance(x, str) else " ".join(x) for x in model["merges"]]
    return model["vocab"], merges


def _padding(tokenizer) -> str:
    """The token that a tokenizer fills up with: <|endoftext|>, or what its files say."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (tokenizer / name).is_file() and (token := _read(tokenizer / name).get("pad_token")):
            return token["content"] if isinstance(token, dict) else token
    return END


def _read(file) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise errors.UsageError(f"{file} cannot be read ({e}).") from e
