"""Flags: what they refuse, what they say, and where they come from."""

import dataclasses
import importlib

import pytest
from test_layers import COMMANDS

from ldm_jax import cli
from ldm_jax.stages.sampling import Sampling

TABLE = dict(
    share=cli.Number("A share.", 0.5, least=0),
    any=cli.Number("Any number."),
    count=cli.Integer("How many.", 3, least=1),
    kind=cli.Choice("The kind.", "wet", of=("wet", "dry")),
    names=cli.Listed("Some names.", ("a",), of=("a", "b")),
    levels=cli.Listed("Some levels.", each=float, least=0),
    loud=cli.Switch("Be loud."),
)
FLAGS = {name: importlib.import_module(f"ldm_jax.{name}").FLAGS for name in COMMANDS}


def read(*argv) -> dict:
    """What `main` of a command with TABLE gets."""
    got = {}
    main = lambda args, overrides: got.update({name: args[name].value for name in TABLE})
    assert cli.run("", TABLE, main, argv) == 0
    return got


def test_values_are_read_and_defaults_stay():
    default = dict(share=0.5, any=None, count=3, kind="wet", names=["a"], levels=[], loud=False)
    assert read() == default
    given = ["--share=1e-1", "--any=-2", "--count=7", "--kind=dry", "--names=b,a", "--loud"]
    wanted = dict(share=0.1, any=-2.0, count=7, kind="dry", names=["b", "a"], loud=True)
    assert read(*given, "--levels=1,0.5") == wanted | {"levels": [1.0, 0.5]}


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--share=nan", "at least 0"),
        ("--share=inf", "at least 0"),
        ("--any=-inf", "finite"),
        ("--any=much", "much"),
        ("--share=-1", "nearest: 0"),
        ("--count=0", "nearest: 1"),
        ("--count=1.5", "1.5"),
        ("--kind=dri", "did you mean 'dry'"),
        ("--names=a,c", "c is unknown"),
        ("--levels=1,nan", "finite"),
        ("--levels=-1", "at least 0"),
        ("--levels=1,high", "give numbers"),
    ],
)
def test_a_wrong_value_is_one_line_with_flag_and_value(flag, words, refused):
    line = refused(cli.run("", TABLE, lambda *_: pytest.fail("it was called"), [flag]))
    assert flag in line and words in line


def test_a_program_of_several_verbs_wants_one_of_them_first(refused):
    got = []
    main = lambda verb, args, overrides: got.append(verb)
    assert cli.run("", TABLE, main, ["up", "--loud"], ("up", "down")) == 0 and got == ["up"]
    for argv in ([], ["--loud"], ["dwn"]):
        line = refused(cli.run("", TABLE, main, argv, ("up", "down")))
        assert "up | down" in line
    assert "did you mean 'down'" in line


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_flag_is_a_sentence(name):
    values = cli.define(FLAGS[name])
    for flag in values:
        said = values[flag].help
        assert said[0].isupper() and said.endswith(".") and "see above" not in said, (flag, said)


@pytest.mark.parametrize("name", ["sample", "edit"])
def test_every_setting_of_the_sampler_is_a_flag(name):
    values = cli.define(FLAGS[name])
    cli.parse(values, ["--clip=1.5", "--interval=0.2,0.9", "--steps=7"])
    given = {"clip": 1.5, "interval": (0.2, 0.9), "steps": 7}
    assert cli.sampling(values) == given
    assert dataclasses.replace(Sampling(), **given).interval == (0.2, 0.9)
    settings = {field.name for field in dataclasses.fields(Sampling)} - {"strength"}
    assert settings <= set(values)


def test_a_command_calls_another_with_its_overrides(monkeypatch, capfd):
    got = []
    from ldm_jax import check_data

    monkeypatch.setattr(check_data, "main", lambda args, overrides: got.append(overrides))
    cli.call("check_data", "--config=x", "--config.data.size=3")
    assert got == [{"data.size": "3"}]
    assert "$ python -m ldm_jax.check_data --config=x" in capfd.readouterr().out
