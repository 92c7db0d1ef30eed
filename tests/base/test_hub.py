"""Files by public name: from the cache, and a line where they cannot be had."""

import pytest

from ldm_jax.base import errors, hub
from ldm_jax.data import captions

NAME = "hf:somebody/words"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache that holds one file of one repository, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--somebody--words"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (snapshot / "vocab.txt").write_text("\n".join([*captions.SPECIAL, "circle"]) + "\n")


def test_a_vocabulary_is_read_by_its_public_name(cache):
    assert captions.read_vocabulary(NAME)["circle"] == len(captions.SPECIAL)


def test_a_path_stays_a_path():
    assert hub.folder("some/folder", "vocab.txt") == "some/folder"


def test_what_cannot_be_fetched_is_one_line_with_the_remedy(cache):
    with pytest.raises(errors.UsageError, match=r"from https://huggingface\.co/nobody"):
        captions.read_vocabulary("hf:nobody/nothing@main")
