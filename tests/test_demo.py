"""The demo: what a run answers is what `sample` and `edit` draw; the page stays on this machine."""

import json
import types

import numpy as np
import pytest
from calling import call
from PIL import Image

import ldm_jax
from ldm_jax import demo
from ldm_jax.base import errors
from ldm_jax.jobs import asking, page

STEPS = {"steps": 3}


@pytest.fixture(scope="module")
def artist(pixel_run):
    return asking.Artist(str(pixel_run))


def test_a_request_draws_what_the_run_draws(artist, pixel_run):
    assert artist.tells == ["class"] and len(artist.classes) == 16
    answer = artist.answer(asking.Request(n=2, seed=7, sampling=STEPS, label=artist.classes[3]))
    run = ldm_jax.load(pixel_run)
    same = run.sample(2, steps=3, seed=7, cond={"class": np.array([3, 3])})
    np.testing.assert_array_equal(answer.images, np.uint8(np.round((same + 1) * 127.5)))
    assert answer.compiled and answer.settings["class"] == artist.classes[3]
    assert not artist.answer(asking.Request(n=2, sampling=STEPS, label="5")).compiled
    frames = artist.frames(asking.Request(sampling=STEPS, label="3"))
    assert frames.shape == (3, 16, 16, 3)


def test_who_watches_a_picture_gets_the_same(artist, monkeypatch):
    wanted = asking.Request(n=2, sampling={"sampler": "ddpm", "steps": 3}, label="3")
    calls = []
    images = artist.answer(wanted, lambda call, of, x_0: calls.append((call, of, x_0.shape))).images
    assert calls == [(i + 1, 3, (2, 16, 16, 3)) for i in range(3)]
    np.testing.assert_array_equal(images, artist.answer(wanted).images)
    monkeypatch.setattr(asking, "PAUSE", 0.001)
    *glances, answer = artist.watched(wanted)
    assert all(isinstance(glance, asking.Glance) for glance in glances)
    np.testing.assert_array_equal(images, answer.images)
    with pytest.raises(errors.UsageError, match="n=0"):
        [*artist.watched(asking.Request(n=0))]


def test_what_is_not_painted_over_stays(artist):
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    hole = np.zeros((16, 16), bool)
    hole[3:9, 4:11] = True
    wanted = asking.Request(n=2, sampling=STEPS, picture=picture, hole=hole)
    images = artist.answer(wanted).images
    np.testing.assert_array_equal(images[:, ~hole], np.stack([picture[~hole]] * 2))
    assert np.mean(images[:, hole] != picture[hole]) > 0.9
    little = asking.Request(n=1, sampling={"steps": 20}, picture=picture, strength=0.05)
    assert np.abs(artist.answer(little).images[0].astype(int) - picture).mean() < 25


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (dict(n=0), "n=0 must be"),
        (dict(seed=-1), "seed=-1 must be"),
        (dict(sampling={"sampler": "dmi"}), "Unknown sampler 'dmi'"),
        (dict(sampling={"guidance": float("nan")}), "guidance=nan"),
        (dict(label="purple circle"), "which is unknown"),
        (dict(label="99"), "not one of 0..15"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(artist, wanted, words):
    with pytest.raises(errors.UsageError, match=words):
        artist.answer(asking.Request(**wanted))


def test_a_picture_says_how_it_was_drawn(tmp_path):
    path = page._write(tmp_path, "00", np.zeros((4, 4, 3), np.uint8), {"seed": 3})
    assert json.loads(Image.open(path).text[page.SETTINGS]) == {"seed": 3}


def test_what_is_painted_is_read():
    layer = np.zeros((8, 8, 4), np.uint8)
    layer[2:4, 1:7, 3] = 255
    background = np.zeros((8, 8, 4), np.uint8)
    picture, hole = page._layers({"background": background, "layers": [layer]})
    assert picture.shape == (8, 8, 3) and hole.sum() == 12
    assert page._layers({"background": None}) == (None, None)
    painted = np.zeros((8, 8, 4), np.uint8)
    assert len(set(page.colours(182))) == 182  # as many as COCO has
    painted[:4, :, :3] = page._rgb(page.colours(182)[150])
    labels = page._map({"background": background, "composite": painted}, 182)
    assert (labels[:4] == 150).all() and (labels[4:] == 0).all()


def test_the_page_listens_to_this_machine_alone(monkeypatch, refused, pixel_run):
    flags = [f"--run={pixel_run}", "--host=0.0.0.0"]
    assert "add --share_on" in refused(call(demo, *flags))
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    assert "pip install gradio" in refused(call(demo, f"--run={pixel_run}"))
    launched = {}
    built = types.SimpleNamespace(launch=lambda **how: launched.update(how))
    monkeypatch.setitem(__import__("sys").modules, "gradio", types.ModuleType("gradio"))
    monkeypatch.setattr(page, "build", lambda paths, gradio: built)
    assert call(demo, *flags, "--share_on") == 0 and launched["server_name"] == "0.0.0.0"
    assert launched["share"] is False and call(demo, f"--run={pixel_run}") == 0
    assert launched["server_name"] == "127.0.0.1"
