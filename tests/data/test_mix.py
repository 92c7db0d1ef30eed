"""Laws of mixed sources: exact shares, nothing left out, nothing both trained on and held out."""

import collections
import pickle

import numpy as np
import pytest
from ml_collections import ConfigDict

from ldm_jax.base import errors
from ldm_jax.data import mix, sources
from ldm_jax.runs import data as data_lib


class Few(sources.Source):
    """Records that say which they are, of classes in turn."""

    def __init__(self, word, count, classes=()):
        self._word, self._count, self.classes = word, count, classes
        self.box_classes, self.fingerprint = classes, f"{word} {count}"

    def __len__(self):
        return self._count

    def __getitem__(self, i):
        record = {"caption": f"{self._word} {i}", "class": np.int32(i % max(1, len(self.classes)))}
        return record | {"box_class": np.full(2, record["class"], np.int32)}

    def name(self, i):
        return f"number {i}"


def mixed(**weights):
    sizes, classes = {"a": 40, "b": 7, "c": 3}, {"a": ("cat", "dog"), "b": ("fox", "dog")}
    classes["c"] = ("cat",)
    return mix.Mix({k: (Few(k, sizes[k], classes[k]), w) for k, w in weights.items()})


def captions(source):
    return collections.Counter(source[i]["caption"] for i in range(len(source)))


@pytest.mark.parametrize("weights", [(1, 1, 1), (6, 1, 1), (1, 20, 0.5), (40, 7, 3)])
def test_an_epoch_has_the_shares_of_the_weights_and_every_record(weights):
    source = mixed(**dict(zip("abc", weights)))
    found = captions(source)
    assert len(found) == 50, "every record of every part"
    shares = collections.Counter()
    for caption, count in found.items():
        shares[caption[0]] += count
    for name, weight in zip("abc", weights):
        assert abs(shares[name] / len(source) - weight / sum(weights)) < 1 / 40
        of_part = [count for caption, count in found.items() if caption[0] == name]
        assert max(of_part) - min(of_part) <= 1, "no record is favoured"


def test_classes_are_of_all_parts_by_name():
    source = pickle.loads(pickle.dumps(mixed(a=1, b=1, c=1)))
    assert source.classes == source.box_classes == ("cat", "dog", "fox")
    own = {"a": ("cat", "dog"), "b": ("fox", "dog"), "c": ("cat",)}
    for i in range(len(source)):
        record = source[i]
        part, number = record["caption"].split()
        assert "abc"[record["part"]] == part
        expected = own[part][int(number) % len(own[part])]
        assert source.classes[record["class"]] == expected
        assert [source.box_classes[k] for k in record["box_class"]] == [expected] * 2
    some = mix.Mix({"a": (Few("a", 4, ("cat",)), 1.0), "b": (Few("b", 4), 1.0)})
    assert some.classes == () and not any("class" in some[i] for i in range(len(some)))


def test_what_is_held_out_of_a_mix_is_never_trained_on():
    source = mixed(a=1, b=3, c=1)
    train, held = (source.holdout(0.2, train=train) for train in (True, False))
    trained, evaluated = captions(train), captions(held)
    assert not trained.keys() & evaluated.keys() and len(trained) + len(evaluated) == 50
    first = {held[i]["caption"][0] for i in range(len(held) // 2)}
    assert {"a", "b"} <= first, "evaluation sees the mix, not its first part"


def test_the_fingerprint_follows_parts_and_weights():
    prints = [mixed(**w).fingerprint for w in (dict(a=1, b=1), dict(a=1, b=2), dict(a=1, c=1))]
    assert len(set(prints)) == 3 and mixed(a=1, b=1).fingerprint == prints[0]


PART = dict(source="scenes", count=9)


def test_a_config_names_the_parts():
    parts = dict(few=PART | {"weight": 2.0}, more=dict(source="scenes", count=30, seed=3))
    source = data_lib.open_source(ConfigDict(dict(source="mix", mix=parts, size=8, path="")))
    assert len(source) == 90 and source[0]["image"].shape == (8, 8, 3) and source.words
    assert source.name(60) == "more: " + source.name(60).removeprefix("more: ")


@pytest.mark.parametrize(
    "parts, message",
    [
        ({}, "config.data.mix is empty"),
        ({"a": 3}, r"config.data.mix.a=3 must be a dict with source"),
        ({"a": {"path": "x"}}, "config.data.mix.a=.* must be a dict with source"),
        ({"a": {"source": "foldr"}}, "config.data.mix.a: .*did you mean 'folder'"),
        ({"a": PART | {"cuont": 3}}, "config.data.mix.a: .*did you mean 'count'"),
        ({"a": PART | {"count": "x"}}, "config.data.mix.a.count=x must be a whole number"),
        ({"a": {"source": "folder", "path": ""}}, "config.data.mix.a: .*has no path"),
        ({"a": PART | {"weight": 0}}, "config.data.mix.a.weight=0 must be"),
        ({"a": PART | {"weight": float("nan")}}, "config.data.mix.a.weight=nan must be"),
        (
            {"a": PART, "b": PART | {"weight": 1e-6, "count": 10_000_000}},
            "part b has a small weight",
        ),
    ],
)
def test_what_is_no_mix_is_one_line(parts, message):
    with pytest.raises(errors.UsageError, match=message) as caught:
        sources.open_source("mix", mix=ConfigDict(parts), size=8)
    assert "\n" not in str(caught.value)
