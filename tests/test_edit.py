"""Editing: what is kept is kept to the pixel, and what is drawn follows its strength."""

import json
import pathlib

import numpy as np
import pytest
from calling import call
from PIL import Image

import ldm_jax
from ldm_jax import cli, edit, sample
from ldm_jax.diffusion import editing
from ldm_jax.jobs import painter

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIZE = 16


def call_edit(name, *argv) -> int:
    return cli.run(edit.__doc__, edit.FLAGS, edit.main, [name, *map(str, argv)], edit.VERBS)


@pytest.fixture(scope="module")
def run(pixel_run):
    return pixel_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three pictures and their masks."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        for kind, pixels in (
            ("images", rng.integers(0, 256, (SIZE, SIZE, 3))),
            ("masks", np.pad(np.full((5, 6), 255), ((4, 7), (2, 8)))),
        ):
            (root / kind).mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(root / kind / f"{name}.png")
    return root


def read(folder):
    return np.stack(
        [np.asarray(Image.open(f).convert("RGB")) for f in sorted(folder.glob("*.png"))]
    )


def summary(out):
    return json.loads((out / "summary.json").read_text())


def test_inpainting_keeps_every_pixel_outside_the_hole(run, folder, tmp_path):
    flags = [f"--run={run}", f"--images={folder / 'images'}", "--steps=3", "--batch_size=2"]
    assert call_edit("inpaint", *flags, f"--masks={folder / 'masks'}", f"--out={tmp_path}") == 0
    given, painted = read(folder / "images"), read(tmp_path / "images")
    hole = read(folder / "masks") > 127
    np.testing.assert_array_equal(painted[~hole], given[~hole])
    assert np.mean(painted[hole] != given[hole]) > 0.9
    assert (tmp_path / "sheet.png").exists() and summary(tmp_path)["num"] == 3


def test_the_network_sees_the_surroundings_of_the_hole():
    """Under a denoiser that copies its left neighbour, the hole fills with what is known there."""
    import jax.numpy as jnp

    known = jnp.arange(8.0).reshape(1, 1, 8, 1)
    mask = jnp.zeros_like(known).at[:, :, 4].set(1.0)
    denoise = editing.keep(lambda x, t: jnp.roll(x, 1, axis=2), known, mask)
    want = known.at[:, :, 4].set(3.0)
    np.testing.assert_array_equal(denoise(known, None), want)


def test_the_ring_around_a_hole_is_painted_too():
    holes = np.zeros((1, 32, 32), bool)
    holes[0, 13, 13] = True
    cells = painter.holes_of_latents(holes, 4)[0, :, :, 0]
    np.testing.assert_array_equal(
        np.argwhere(cells), [(i, j) for i in (2, 3, 4) for j in (2, 3, 4)]
    )
    assert painter.holes_of_latents(holes, 1).sum() == 1


def test_little_strength_changes_little(run, folder, tmp_path):
    given, far = read(folder / "images").astype(int), []
    for strength in (0.05, 0.95):
        out = tmp_path / str(strength)
        flags = [f"--run={run}", f"--images={folder / 'images'}", f"--out={out}", "--steps=20"]
        assert call_edit("vary", *flags, f"--strength={strength}") == 0
        far.append(np.abs(read(out / "images") - given).mean())
    assert far[0] < far[1]


def test_interpolation_begins_and_ends_at_the_seeds_own_images(run, tmp_path):
    flags = [f"--run={run}", "--steps=2", "--guidance=1", "--batch_size=4"]
    out = tmp_path / "out"
    assert call_edit("interpolate", *flags, "--seeds=1,2,3", "--frames=4", f"--out={out}") == 0
    frames = read(out / "images").astype(int)
    assert len(frames) == 7 and (out / "animation.gif").exists()
    model = ldm_jax.load(run)
    for seed, frame in ((1, frames[0]), (2, frames[3]), (3, frames[6])):
        own = model.draw(1, model_sampling(), seed, size=(SIZE, SIZE))
        assert np.abs(own[0].astype(int) - frame).max() <= 1


def model_sampling():
    from ldm_jax.stages.sampling import Sampling

    return Sampling(steps=2)


def test_interpolation_between_pictures(run, folder, tmp_path):
    flags = [f"--run={run}", f"--images={folder / 'images'}", "--steps=2", "--strength=0.5"]
    assert call_edit("interpolate", *flags, "--frames=3", f"--out={tmp_path}") == 0
    assert len(read(tmp_path / "images")) == 5 and summary(tmp_path)["between"] == ["a", "b", "c"]


def test_slerp_keeps_the_length_and_meets_its_ends():
    a, b = np.random.default_rng(0).normal(size=(2, 5, 4, 4, 3))
    weight = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    mixed = np.asarray(editing.slerp(a, b, weight))
    norm = lambda x: np.sqrt((x**2).sum((1, 2, 3)))
    np.testing.assert_allclose(mixed[0], a[0], atol=1e-5)
    np.testing.assert_allclose(mixed[-1], b[-1], atol=1e-5)
    assert np.all(norm(mixed) > 0.8 * np.minimum(norm(a), norm(b)))
    np.testing.assert_allclose(editing.slerp(a, a, weight), a, atol=1e-5)


def test_progress_ends_in_the_sample(run, tmp_path):
    flags = [f"--run={run}", "--num=2", "--frames=3", "--steps=4", "--labels=3,5"]
    assert call_edit("progress", *flags, f"--out={tmp_path / 'rows'}") == 0
    sheet = np.asarray(Image.open(tmp_path / "rows" / "sheet.png"))
    assert sheet.shape[0] > sheet.shape[1]  # two rows a picture, three frames across
    flags = [f"--run={run}", "--num=2", "--steps=4", "--labels=3,5", "--batch_size=8"]
    assert call(sample, *flags, f"--out={tmp_path / 'samples'}") == 0
    last, drawn = (read(tmp_path / name / "images").astype(int) for name in ("rows", "samples"))
    assert np.abs(last - drawn).max() <= 1  # the last prediction is where the last step lands


def test_reconstruction_of_the_identity_is_the_picture(run, folder, tmp_path):
    flags = [f"--run={run}", f"--images={folder / 'images'}", f"--out={tmp_path}"]
    assert call_edit("reconstruct", *flags, "--batch_size=2") == 0
    np.testing.assert_array_equal(read(tmp_path / "images"), read(folder / "images"))
    assert summary(tmp_path)["psnr_db"] > 100


def test_large_images_are_drawn_tile_by_tile_and_seams_do_not_show(run, tmp_path):
    flags = [f"--run={run}", "--num=8", "--batch_size=8", "--steps=2", "--size=48x64", "--eta=0"]
    assert call(sample, *flags, f"--out={tmp_path / 'auto'}") == 0
    tiled = read(tmp_path / "auto" / "images").astype(float)
    assert tiled.shape == (8, 48, 64, 3)
    # Tiles of 32 begin at 0, 16 and 32 along the width: their edges are no rougher than the rest.
    step = np.abs(np.diff(tiled, axis=2)).mean((0, 1, 3))
    edges = [15, 31, 47]
    assert step[edges].mean() < 1.2 * np.delete(step, edges).mean()


def test_a_run_for_super_resolution_is_known_under_any_label(run, tmp_path, refused):
    config = json.loads((run / "config.json").read_text())
    config["conditioners"] = {"small": {"name": "image"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code = call_edit("upscale", f"--run={tmp_path}", f"--out={tmp_path / 'out'}")
    assert "--images is missing" in refused(code)


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        (None, [], "The first argument"),
        ("inpant", [], "did you mean 'inpaint'"),
        ("inpaint", ["--images={images}"], "--masks is missing"),
        ("inpaint", ["--images={images}", "--masks={images}/a.png", "--run=none"], "is not a run"),
        ("inpaint", ["--images={images}", "--masks={small}"], "make them the same size"),
        ("inpaint", ["--images={images}", "--masks={black}"], "no white to paint"),
        ("inpaint", ["--images={images}", "--masks={one}"], "has none for image"),
        ("vary", ["--images={images}", "--strength=0"], "strength=0"),
        ("vary", ["--images={root}"], "no images there"),
        ("vary", ["--images={images}", "--labels=99"], "99 is not a class id"),
        ("upscale", ["--images={images}"], "not trained for super-resolution"),
        ("interpolate", [], "--images or --seeds"),
        ("interpolate", ["--seeds=1"], "two pictures, or seeds"),
        ("interpolate", ["--seeds=one,two"], "--seeds=one,two"),
    ],
)
def test_edit_refuses_in_one_line(name, flags, words, run, folder, tmp_path, capfd):
    small, black, one = (tmp_path / kind for kind in ("small", "black", "one"))
    for root, pixels in ((small, np.full((8, 8), 255)), (black, np.zeros((SIZE, SIZE)))):
        root.mkdir()
        for stem in "abc":
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"{stem}.png")
    one.mkdir()
    Image.fromarray(np.full((SIZE, SIZE), 255, np.uint8)).save(one / "a.png")
    places = dict(images=folder / "images", root=folder, small=small, black=black, one=one)
    flags = [f"--run={run}", f"--out={tmp_path / 'out'}", *(f.format(**places) for f in flags)]
    argv = [*([name] if name else []), *flags]
    assert cli.run(edit.__doc__, edit.FLAGS, edit.main, argv, edit.VERBS) == cli.EXIT_USAGE
    err = capfd.readouterr().err.strip().splitlines()
    assert len(err) == 1 and words in err[0], err
    assert not (tmp_path / "out").exists()
