"""Byte pairs as transformers' CLIPTokenizer (5.23.0) says them."""

import json
import types

import numpy as np
import pytest
from tokenizers.pre_tokenizers import ByteLevel

from ldm_jax.base import errors
from ldm_jax.data import bytepairs, conditions, images

LETTERS = sorted(ByteLevel.alphabet())
MERGES = [("r", "e"), ("re", "d</w>"), ("c", "i"), ("o", "f</w>"), ("l", "e</w>")]
TOKENS = [*LETTERS, *(f"{c}</w>" for c in LETTERS), *(a + b for a, b in MERGES)]
TOKENS += [bytepairs.START, bytepairs.END]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(TOKENS)}))
    merges = "\n".join(" ".join(pair) for pair in MERGES)
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    return str(tmp_path)


def maker(folder, length=14, **changes):
    size = len(TOKENS)
    own = dict(vocab_size=size, start=size - 2, end=size - 1, pad=size - 1) | changes
    given = {"clip_ids": (length,)}, types.SimpleNamespace(**own), {"tokenizer": folder}
    return bytepairs.ClipIds(conditions.Given(*given))


def spelt(folder, text, **kwargs):
    ids = maker(folder, **kwargs)({"caption": text}, np.random.default_rng())["clip_ids"]
    return (
        " ".join(TOKENS[i] for i in ids).replace(bytepairs.END, ">").replace(bytepairs.START, "<")
    )


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Red  circle of 42", "< red</w> ci r c le</w> of</w> 4</w> 2</w> > > > > >"),
        ("don't_\n!?", "< d o n</w> ' t</w> _</w> ! ?</w> > > > > >"),
        ("", "< > > > > > > > > > > > > >"),
        ("é", "< Ã ©</w> > > > > > > > > > > >"),
        ("e" * 40, f"< {' '.join('e' * 12)} >"),
    ],
)
def test_captions_are_split_into_byte_pairs(folder, text, expected):
    assert spelt(folder, text) == expected


def test_what_looks_like_a_special_token_is_only_text(folder):
    ids = maker(folder, 30)({"caption": "<|endoftext|>"}, np.random.default_rng())["clip_ids"]
    assert ids.tolist().index(len(TOKENS) - 1) > 5


def test_padding_is_another_token_where_the_conditioner_says_so(folder):
    assert spelt(folder, "red", length=5, pad=0) == f"< red</w> > {TOKENS[0]} {TOKENS[0]}"


def test_a_record_without_caption_is_bad(folder):
    with pytest.raises(images.BadRecord, match="has no caption"):
        maker(folder)({}, np.random.default_rng())


def test_what_does_not_fit_is_refused_in_one_line(folder, tmp_path):
    for make, message in [
        (lambda: maker(""), "tokenizer.*hf:openai"),
        (lambda: maker(str(tmp_path / "none")), "none.*hf:openai"),
        (lambda: maker(folder, end=3), "end=3"),
        (lambda: maker(folder, vocab_size=49_408), "vocab_size=49408"),
    ]:
        with pytest.raises(errors.UsageError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)
