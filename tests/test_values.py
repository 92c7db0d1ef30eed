"""Any value of any key either trains or is refused in one line, before a device is touched."""

import functools
import pathlib
import random
import re
import runpy
from typing import Literal

import pytest
from ml_collections import ConfigDict

from configs import debug
from ldm_jax.base import errors, values
from ldm_jax.runs import check, data, keys

HOSTILE = (None, True, False, 0, 1, -1, 2, 7, 10**9, 2**31, 10**400, 0.5, -0.5, 1.5, 1e308)
HOSTILE += (float("nan"), float("inf"), -float("inf"), 1j, "", "x", "a\nb", "\udcff", "x" * 400)
HOSTILE += ((), (0,), (1,), (3,), (1.5, 2), ("a",), ((1,), (2,)), (True,), (float("nan"),), [], {})
HOSTILE += ({"name": "x"}, {"name": 3}, b"x", object(), -(2**63), 16, 64, (2, 4), "/", "nosuch.py")


def ldm():
    config = debug.ldm()
    config.first_stage = "identity"
    return config


def recipes():
    return {"first_stage": debug.vq, "ldm": ldm}


def paths(config, prefix=""):
    for key in config:
        yield f"{prefix}{key}"
        if isinstance(value := config[key], ConfigDict):
            yield from paths(value, f"{prefix}{key}.")


def with_value(recipe, path, value):
    config = recipe().to_dict()
    *groups, last = path.split(".")
    functools.reduce(dict.__getitem__, groups, config)[last] = value
    return ConfigDict(config, type_safe=False)


@pytest.mark.parametrize("name", recipes())
def test_any_value_of_any_key_trains_or_is_refused_in_one_line(name):
    recipe, rng = recipes()[name], random.Random(0)
    for path in paths(recipe()):
        for value in rng.sample(HOSTILE, 4):
            config = with_value(recipe, path, value)
            try:
                keys.check(config, decided=False)
                source = data.open_source(config.data)
                check.check(data.resolve(config, source), source)
            except errors.UsageError as e:
                assert "\n" not in str(e) and len(str(e)) < 1000
            except Exception as e:
                raise AssertionError(f"{path}={value!r}") from e


@pytest.mark.parametrize("name", recipes())
def test_every_key_has_a_type(name):
    recipe = recipes()[name]
    for path in paths(recipe()):
        with pytest.raises(errors.UsageError, match=re.escape(f"config.{path}")):
            keys.check(with_value(recipe, path, object()), decided=False)


@pytest.mark.parametrize(
    ("key", "conditioner"),
    [
        ("width", dict(name="class", num_classes=16, place="vector")),
        ("vector", dict(name="layout", width=8, depth=1, vocab_size=512, pad=511, length=14)),
    ],
)
def test_a_vector_is_as_wide_as_the_embedding_that_it_is_added_to(key, conditioner):
    config = ldm()
    config.conditioners = {"shape": conditioner | {key: 4 * config.model.width}}
    source = data.open_source(config.data)
    check.check(config, source)
    config.conditioners.shape[key] += 1
    with pytest.raises(errors.UsageError, match=rf"conditioners.shape: {key}=65 must be 64"):
        check.check(config, source)


def test_the_reference_of_keys_is_what_is_declared_and_every_key_has_a_sentence():
    script = runpy.run_path(str(pathlib.Path(__file__).parent.parent / "docs" / "keys.py"))
    page = script["page"]()
    bare = re.findall(r"^\| (`\w+`) \|.*\|.*\| +\|$", page, re.M)
    assert not bare, f"{bare}: say in a comment behind the key what it is (docs/extend.md)"
    assert script["PAGE"].read_text() == page, "docs/keys.md is old; renew it: python docs/keys.py"


@pytest.mark.parametrize(
    ("annotation", "good", "bad", "nearest"),
    [
        (values.Positive, 1, 0, 1),
        (values.Natural, 0, True, None),
        (values.Natural, 3, 2.6, 3),
        (values.Share, 0.5, 1.5, 1),
        (values.Amount, 0, float("nan"), None),
        (float, -1e9, float("inf"), None),
        (bool, False, 0, False),
        (Literal["hinge", "vanilla"], "hinge", "henge", "hinge"),
        (tuple[values.Positive, ...], (), (2, -1), (2, 1)),
        (values.Positive | None, None, 0, 1),
        (values.Positives, (1,), (), None),
        (dict[str, values.Share], {"a": 1}, {"a": 2}, None),
        (str, "a/b", "a\nb", None),
    ],
)
def test_a_type_takes_what_it_says_and_names_what_is_near(annotation, good, bad, nearest):
    kind = values.of(annotation)
    assert kind.takes(good) and not kind.takes(bad)
    found = kind.nearest(bad)
    assert found == nearest and (found is None or kind.takes(found))
