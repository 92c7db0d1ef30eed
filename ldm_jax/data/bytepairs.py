"""Captions as CLIP's byte-pair ids (Radford et al. 2021)."""

from typing import ClassVar

import numpy as np

from ldm_jax.base import errors, hub
from ldm_jax.data import captions, conditions

START, END = "<|startoftext|>", "<|endoftext|>"
_LONGEST = 100  # characters a token stands for, at most
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_WHERE = "hf:openai/clip-vit-large-patch14 fetches vocab.json and merges.txt"


@conditions.MAKERS.register("clip_ids")
class ClipIds(captions.Ids):
    """`clip_ids` int32 [length]: start, caption, end, then padding.

    tokenizer: folder of vocab.json and merges.txt, or hf:openai/clip-vit-large-patch14. The
    conditioner's vocab_size, start, end and pad have to agree with it.
    """

    field = "clip_ids"
    options: ClassVar = {"tokenizer": str}

    def __init__(self, given):
        folder, own = given.options.get("tokenizer", ""), given.conditioner
        vocab, merges = read_tokenizer(folder)
        found, said = (len(vocab), vocab[START], vocab[END]), (own.vocab_size, own.start, own.end)
        if found != said or not 0 <= own.pad < own.vocab_size:
            raise errors.UsageError(
                f"The clip conditioner has vocab_size={said[0]}, start={said[1]}, end={said[2]}, "
                f"pad={own.pad}, but the tokenizer {folder} has {found[0]} tokens, start "
                f"{found[1]} and end {found[2]}: give the conditioner these, or another tokenizer."
            )
        start, end = (START, own.start), (END, own.end)
        [length] = given.shapes[self.field]
        how = dict(start=start, end=end, pad=own.pad, longest=_LONGEST)
        super().__init__(tokenizer(vocab, merges), length, **how)


def tokenizer(vocab: dict[str, int], merges: list):
    """The `tokenizers.Tokenizer` of `read_tokenizer`'s result: text to ids, with nothing around."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    # What looks like a special token in a caption is only text: the tokenizer knows of none.
    made = Tokenizer(models.BPE(vocab, merges, end_of_word_suffix="</w>", unk_token=END))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    made.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    return made


def encode(captions, folder, length: int = 77) -> np.ndarray:
    """The captions as CLIP was trained on them, int32 [n, length]; folder: see `read_tokenizer`.

    A caption that is too long is cut, as OpenAI's tokenizer does with `truncate`; behind its end
    are zeros.
    """
    vocab, merges = read_tokenizer(folder)
    made = tokenizer(vocab, merges)
    ids = np.zeros((len(captions), length), np.int32)
    for row, caption in zip(ids, captions):
        own = made.encode(str(caption)[: length * _LONGEST]).ids[: length - 2]
        row[: len(own) + 2] = [vocab[START], *own, vocab[END]]
    return ids


def read_tokenizer(folder: str) -> tuple[dict[str, int], list]:
    """{token: id} and the merges, in their order; folder: of both files, or a name (clip:l14)."""
    from tokenizers import models

    wrong = lambda why: errors.UsageError(f"The clip conditioner{why}; {_WHERE}")
    if not folder:
        raise wrong(" has no tokenizer: give the folder of one")
    names = ("vocab.json", "merges.txt")
    files = [str(hub.folder(folder, *names) / name) for name in names]
    try:
        vocab, merges = models.BPE.read_file(*files)
    except Exception as e:  # the library raises a bare Exception
        raise wrong(f"'s tokenizer={folder} cannot be read ({e})") from e
    if missing := [token for token in (START, END) if token not in vocab]:
        raise wrong(f"'s tokenizer={folder} is not CLIP's: it lacks {missing[0]}")
    return vocab, merges
