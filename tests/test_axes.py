"""The axes of a sweep: how they are said, which cells they make, what is refused."""

import pathlib

import pytest
from calling import call

from ldm_jax import sweep
from ldm_jax.base import errors
from ldm_jax.diffusion import process
from ldm_jax.models import backbones
from ldm_jax.models.unet import UNet
from ldm_jax.sweeps import axes, cells, widths

ROOT = pathlib.Path(__file__).resolve().parent.parent
F = f"{ROOT}/configs/sweeps/downsampling.py"
SWEEP = f"{ROOT}/configs/sweeps/objectives.py:debug"
PRESET = {"latents": {"scale": {}, "each": {"ldm.latents.per_channel": True}}}


def planned(**overrides):
    return cells.cells(axes.load(SWEEP, overrides))


def test_the_names_of_the_ablation_over_f_are_what_they_were():
    config = axes.load(f"{F}:tiny", {"parameters": "0", "f": "(1,4,32)"})
    names = ["f1_pixels_c3_s0", "f4_kl_c4_s0", "f32_kl_c32_s0"]
    assert [cell.name for cell in cells.cells(config)] == names


def test_a_star_leaves_the_baseline_in_one_axis_and_a_grid_in_all():
    star, grid = planned(), planned(design="grid")
    ours = ["v_adamw", "flow_adamw", "v_muon"]
    assert [c.name for c in star] == [f"f2_kl_c2_{own}_s{seed}" for own in ours for seed in (0, 1)]
    assert len({c.name for c in grid}) == len(grid) == 8
    assert {c.name for c in star} < {c.name for c in grid}
    assert len({c.first_stage_name for c in grid}) == len({c.cache_name for c in grid}) == 1
    flow, muon = star[2].ldm, star[4].ldm
    assert (flow.process.prediction, flow.process.schedule) == ("flow", "rectified")
    assert flow.optim.denoiser.name == "adamw" and muon.optim.denoiser.lr == 0.02
    assert muon.process.prediction == "v"
    config = axes.load(SWEEP, {})
    assert len({c.run_name(config) for c in star}) == len(star)
    assert star[0].run_name(config) == grid[0].run_name(config)


def test_seeds_reach_first_stages_where_that_is_asked():
    a, b = planned(axes="prediction=v", seed_first_stages="True")
    assert a.first_stage_name != b.first_stage_name and a.first_stage.seed == 0
    assert (b.first_stage.seed, b.ldm.seed) == (1, 1)


def test_axes_are_chosen_and_added_on_the_command_line():
    text = "latents = each, scale ;ldm.process.prediction=eps,v; ldm.model.mult=(1,2),(1, 2, 2);"
    found = axes.parse(text, PRESET)
    assert list(found) == ["latents", "ldm.process.prediction", "ldm.model.mult"]
    assert list(found["latents"]) == ["each", "scale"]
    assert found["ldm.process.prediction"] == ("eps", "v")
    assert found["ldm.model.mult"] == ("(1,2)", "(1, 2, 2)")
    assert axes.parse("latents", PRESET) == PRESET and axes.parse("", PRESET) == {}
    key = "first_stage.optim.autoencoder.lr"
    [a, *_, b] = planned(axes=f"{key}=1e-3,2e-3; ldm.model.blocks=1,2")[:6]
    assert a.name == "f2_kl_c2_1e-3_1_s0" and a.first_stage.optim.autoencoder.lr == 1e-3
    assert b.name == "f2_kl_c2_1e-3_2_s1" and b.ldm.model.blocks == 2
    assert b.parameters > a.parameters


def test_what_changes_first_stages_alone_says_nothing_about_pixels():
    overrides = {"parameters": "0", "axes": "first_stage.loss.kl_weight=1e-6,1e-3"}
    names = [cell.name for cell in cells.cells(axes.load(f"{F}:debug", overrides))]
    assert names == ["f1_pixels_c3_pixels_s0", "f2_kl_c2_1e-6_s0", "f2_kl_c2_1e-3_s0"]


def test_a_value_may_be_another_backbone(monkeypatch):
    monkeypatch.setitem(backbones.BACKBONES._entries, "narrow", UNet)
    config = axes.load(SWEEP, {"seeds": "(0,)"})
    narrow = dict(name="narrow", width=8, mult=(1,), blocks=1, attention=(), heads=1, groups=4)
    vector = {"class": dict(name="class", num_classes=-1, width=1, place="vector")}
    with config.unlocked():
        config.ldms.f2.conditioners = vector
        config.axes = (("net", {"unet": {}, "narrow": {"ldm.model": narrow}}),)
    unet, other = cells.cells(config)
    assert other.ldm.model.to_dict() == narrow and unet.ldm.model.name == "unet"
    assert (unet.ldm.conditioners["class"].width, other.ldm.conditioners["class"].width) == (64, 32)
    with config.unlocked():
        config.axes = (("net", {"narrow": {"ldm.model": narrow | {"widht": 3}}}),)
    with pytest.raises(errors.UsageError, match="has no key 'widht'; did you mean 'width'"):
        cells.cells(config)
    del other.ldm.model["width"]
    with pytest.raises(errors.UsageError, match="narrow has no width to choose"):
        widths.solve(other.ldm, other.codec, 1000, 0.1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ldm.process.predicton=eps", "has no key 'predicton'; did you mean 'prediction'"),
        ("ldm.process.prediction=epps", "Unknown prediction 'epps'"),
        ("ldm.optim.denoiser.lr=fast", "ldm.optim.denoiser.lr=fast: wants float"),
        ("ldm.process=eps", "ldm.process=eps: this is a group"),
        ("ldm.process.density_mean=9", "density_mean"),
        ("ldm.process.density=logit_normal; ldm.process.density_mean=9", "lies within the noise"),
        ("first_stage.model.shortcut=liner", "did you mean 'linear'"),
        ("prediction=v,esp", "prediction has no value 'esp'"),
        ("predicton", "neither an axis of the preset (prediction, optimizer)"),
        ("ldm.process.prediction=", "neither an axis"),
        ("ldm.seed=1,2", "ldm.seed is set by config.seeds"),
        ("first_stage.model.bottleneck=kl,vq", "bottleneck and first_stage.model.bottleneck both"),
        ("prediction; ldm.process.prediction=v,eps", "both set ldm.process.prediction"),
        ("ldm.optim.denoiser.lr=1e-3,0.001", "are the same, key by key"),
    ],
)
def test_axes_are_refused_in_one_line_before_anything_runs(text, words, tmp_path, refused):
    flags = [f"--sweep={SWEEP}", f"--workdir={tmp_path / 'sweep'}", "--dry_run"]
    assert words in refused(call(sweep, *flags, f"--config.axes={text}"))
    assert not (tmp_path / "sweep").exists()


def test_the_plugins_of_its_recipes_are_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(process.DENSITIES, "_entries", dict(process.DENSITIES._entries))
    (tmp_path / "humps.py").write_text(
        "import numpy as np\nfrom ldm_jax.diffusion.process import DENSITIES\n"
        "DENSITIES.register('humps')(lambda process, *, width=1.0: np.ones(process.timesteps))\n"
    )
    text = "ldm.process.density=humps; ldm.process.width=1,2"
    config = axes.load(SWEEP, {"ldms.f2.plugins": "humps", "axes": text, "seeds": "(0,)"})
    assert [cell.ldm.process.width for cell in cells.cells(config)][-1] == 2
    with pytest.raises(
        errors.UsageError, match=r"config.ldms.f2.plugins: lumps cannot be imported"
    ):
        axes.load(SWEEP, {"ldms.f2.plugins": "lumps"})


def test_an_unknown_design_is_refused(tmp_path, refused):
    flags = [f"--sweep={SWEEP}", f"--workdir={tmp_path}", "--config.design=start"]
    assert "must be 'grid' or 'star'; nearest: star" in refused(call(sweep, *flags))
