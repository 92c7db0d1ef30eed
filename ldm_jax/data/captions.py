"""Captions as WordPiece ids, as BERT's `uncased` models split text (Devlin et al. 2018)."""

import numpy as np

from ldm_jax.base import disk, errors, hub
from ldm_jax.data import conditions, images

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_LONGEST = 100  # characters of a word; a longer one is [UNK]
_WHERE = (
    "--config.data.vocabulary=hf:google-bert/bert-base-uncased fetches the usual one, 30,522 lines"
)


class Ids(conditions.Maker):
    """Ids of a caption, [length] int32, as field `field`.

    A caption that is too long is cut, but keeps its end token; an empty one is the null condition.
    Of several captions a random one is taken. A record without any is bad.

    Args:
      tokenizer: a `tokenizers.Tokenizer`; it is made to give exactly `length` ids.
      start, end: what is put before and after a caption, (token, id) each; pad: the id behind.
      longest: characters that a token stands for, at most.
    """

    field: str

    def __init__(self, tokenizer, length: int, *, start, end, pad: int, longest: int):
        from tokenizers import processors

        tokenizer.post_processor = processors.BertProcessing(end, start)
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length, pad_id=pad)
        self._tokenizer, self._length = tokenizer, length
        self._characters = length * longest

    def __call__(self, record, rng):
        if captions := record.get("captions", ()):
            record = record | {"caption": captions[rng.integers(len(captions))]}
        if "caption" not in record:
            raise images.BadRecord("has no caption")
        # The ids of what lies beyond would be cut off anyway, so it need not be split into words.
        text = str(record["caption"])[: self._characters]
        return record | {self.field: np.array(self._tokenizer.encode(text).ids, np.int32)}

    def findings(self, record):
        captions = record.get("captions") or [record.get("caption", "")]
        if not all(str(caption).strip() for caption in captions):
            yield "empty caption"
        if any(self._tokenizer.encode(str(caption)).overflowing for caption in captions):
            yield f"caption longer than {self._length} tokens, cut"


@conditions.MAKERS.register("text_ids")
class TextIds(Ids):
    """`text_ids` int32 [length]: [CLS] caption [SEP], then [PAD].

    The vocabulary is `config.data.vocabulary`: the path of a vocab.txt, a token a line, or
    hf:google-bert/bert-base-uncased; "" takes the source's own words. The conditioner's vocab_size,
    pad and null have to agree with it.
    """

    field = "text_ids"

    def __init__(self, given):
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

        path, own = given.data.get("vocabulary", ""), given.conditioner
        vocab = read_vocabulary(path, given.source)
        count, pad, null = _keys(vocab).values()
        if count > own.vocab_size or (pad, null) != (own.pad, tuple(own.null)):
            raise errors.UsageError(
                f"The text conditioner has vocab_size={own.vocab_size}, pad={own.pad}, "
                f"null={tuple(own.null)}, but the vocabulary {path or 'of the source'} has {count} "
                f"tokens, pad {pad} and the empty caption {null}; give it these, or another "
                "--config.data.vocabulary."
            )
        pieces = models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=_LONGEST)
        made = Tokenizer(pieces)
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        start, end = (("[CLS]", null[0]), ("[SEP]", null[1]))
        [length] = given.shapes[self.field]
        super().__init__(made, length, start=start, end=end, pad=pad, longest=_LONGEST + 1)

    @classmethod
    def decide(cls, source, data):
        return _keys(read_vocabulary(data.get("vocabulary", ""), source))


def _keys(vocab: dict[str, int]) -> dict:
    """The keys of the conditioner that a vocabulary decides."""
    null = (vocab["[CLS]"], vocab["[SEP]"])
    return {"vocab_size": len(vocab), "pad": vocab["[PAD]"], "null": null}


def read_vocabulary(path: str, source=None) -> dict[str, int]:
    """{token: id} of a vocab.txt, or of the words that the source knows its captions to be of."""
    wrong = lambda why: errors.UsageError(f"config.data.vocabulary{why}; {_WHERE}")
    if not path:
        words = getattr(source, "words", ())
        if not words:
            raise wrong(" is empty, and this data source has no words of its own: give a vocab.txt")
        return {token: i for i, token in enumerate((*SPECIAL, *words))}
    file = hub.folder(path, "vocab.txt")
    file = file / "vocab.txt" if file.is_dir() else file
    try:
        lines = disk.read_text(file).rstrip("\n").split("\n")
    except errors.UsageError as e:
        raise wrong(f": {str(e).rstrip('.')}") from e
    vocab = {token.rstrip("\r"): i for i, token in enumerate(lines)}
    if missing := [token for token in SPECIAL if token not in vocab]:
        raise wrong(f"={path} is no WordPiece vocabulary: it lacks {missing[0]}")
    return vocab
