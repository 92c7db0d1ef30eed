"""A control follows hints over a frozen base: how it starts, diffusers' figures, refusals."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from calling import call
from make_control_golden import FILE, SCALES, T, filled, given
from safetensors.numpy import load_file, save_file
from test_pipelines import convert_ok, tiny_run

import ldm_jax
from ldm_jax import convert, sample, train
from ldm_jax.base import raster
from ldm_jax.base import record as record_lib
from ldm_jax.data import hints
from ldm_jax.engine import snapshots
from ldm_jax.runs import conversion, kinds
from ldm_jax.runs import data as data_lib
from ldm_jax.runs import frozen as frozen_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent
WEIGHTS = "diffusion_pytorch_model.safetensors"
X, TIMES = np.ones((2, 16, 16, 3), np.float32), np.array([5, 700])
HINT = np.random.default_rng(0).random((2, 16, 16, 3)).astype(np.float32)
CLASSES = {"class": np.array([1, 4])}


def recipe(base, **overrides):
    flags = {"optim.denoiser.warmup": "1", "steps.total": "6"} | overrides
    config = data_lib.load(f"{ROOT}/configs/control.py:{base}", flags)
    return data_lib.resolve(config, data_lib.open_source(config.data))


@pytest.fixture(scope="module")
def base(pixel_run):
    """(what the base computes under CLASSES, what under the null condition)."""
    run = ldm_jax.load(pixel_run)
    return run.denoise(X, TIMES, CLASSES), run.denoise(X, TIMES)


@pytest.fixture(scope="module")
def control_run(pixel_run, tmp_path_factory):
    """(its folder, as it begins; its config)."""
    folder, config = tmp_path_factory.mktemp("control") / "run", recipe(pixel_run)
    folder.mkdir()
    record, kind = record_lib.Record(folder), kinds.of(config)
    record.write_config(config)
    frozen, origin = frozen_lib.read(kind.frozen(config), {}, "it")
    [player] = kind.stage(config, frozen | {"scale": 1.0}).players
    own = jax.jit(player.init)(jax.random.key(0), player.measure())
    assert jax.tree.structure(own) == jax.tree.structure(kind.shapes(config)["denoiser"])
    conversion.save(folder, 0, {"params": {"denoiser": own}, "ema": {}})
    record.write(latents=record_lib.Record(pixel_run).latents | {"origin": origin})
    return folder, config


@pytest.fixture(scope="module")
def taught(control_run, tmp_path_factory):
    """A control with random weights, as if it had learnt something."""
    folder, _ = control_run
    own, _ = snapshots.read_params(folder, ("denoiser",))
    rng = np.random.default_rng(1)
    fill = lambda x: (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32)
    taught = tmp_path_factory.mktemp("taught") / "run"
    shutil.copytree(folder, taught)
    shutil.rmtree(taught / "checkpoints")
    params = {"denoiser": jax.tree.map(fill, own["denoiser"])}
    conversion.save(taught, 0, {"params": params, "ema": {}})
    return taught


def test_at_first_it_is_its_base_to_the_bit_whose_encoder_it_copies(control_run, pixel_run, base):
    run = ldm_jax.load(control_run[0])
    own, _ = snapshots.read_params(control_run[0], ("denoiser",))
    theirs, _ = snapshots.read_params(pixel_run, ("denoiser",))
    copy, unet = own["denoiser"]["unet"]["control"], theirs["denoiser"]["unet"]
    for name in ("conv_in", "time_1", "down_0_block_0", "mid_attn", "mid_block_2"):
        jax.tree.map(np.testing.assert_array_equal, copy[name], unet[name])
    assert not any(np.any(leaf) for name in copy if "zero" in name for leaf in copy[name].values())
    assert not any(name.startswith("up_") for name in copy) and "conv_out" not in copy
    cond = CLASSES | {"hint": HINT}
    np.testing.assert_array_equal(run.denoise(X, TIMES, cond), base[0])


def test_what_it_learnt_counts_as_often_as_is_said_and_guidance_has_it_on_both_sides(
    taught, pixel_run, base, tmp_path, refused, capfd
):
    run = ldm_jax.load(taught)
    cond = CLASSES | {"hint": HINT}
    np.testing.assert_array_equal(run.denoise(X, TIMES), base[1])  # the null has no control
    assert np.abs(run.denoise(X, TIMES, cond) - base[0]).max() > 1e-2
    # The null side follows the hint, too: a null of the same class leaves nothing to be guided by.
    alone = run.sample(2, steps=2, cond=cond)
    same = cond | {"null_class": CLASSES["class"]}
    guided = run.sample(2, steps=2, guidance=2.0, cond=same)
    np.testing.assert_allclose(guided, alone, atol=1e-5)

    for name, x in zip(("a", "b"), HINT):
        raster.write_png(tmp_path / "hints" / f"{name}.png", (255 * x).astype(np.uint8))
    raster.write_png(tmp_path / "small" / "a.png", np.zeros((8, 8, 3), np.uint8))
    draw = lambda *flags, run=taught: call(
        sample, f"--run={run}", "--num=8", "--batch_size=8", "--steps=1", *flags
    )
    assert draw(f"--hints={tmp_path}/hints", f"--out={tmp_path}/out", "--labels=3") == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["hints"]
    np.savez(tmp_path / "one.npz", hint=HINT[..., :1])
    np.savez(tmp_path / "bytes.npz", hint=255 * HINT)
    bad = {
        "": "also conditioned on hint: give --hints",
        f"--hints={tmp_path}/small": "hint 0 has the shape (8, 8, 3), and this run's control fol",
        f"--cond={tmp_path}/one.npz": "hint 0 has the shape (16, 16, 1)",
        f"--cond={tmp_path}/bytes.npz": "hint 0 has values from",
        f"--hints={tmp_path}/none": "no images there",
    }
    capfd.readouterr()
    for flag, line in bad.items():
        assert line in refused(draw(*filter(None, [flag]), f"--out={tmp_path}/no")), flag
    on_base = dict(run=pixel_run)
    assert "of a control" in refused(
        draw(f"--out={tmp_path}/no", "--conditioning_scale=0.5", **on_base)
    )
    assert "follows no control" in refused(
        draw(f"--out={tmp_path}/no", f"--hints={tmp_path}/hints", **on_base)
    )
    beside = draw(f"--out={tmp_path}/no", f"--adapters={taught}", **on_base)
    assert "is a control, which its base cannot follow" in refused(beside)
    with pytest.raises(ldm_jax.base.errors.UsageError, match="lacks 'hint'"):
        run.sample(2, cond=CLASSES)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["conditioners.control.width=32"], "width=32 must be 16, that of config.model"),
        (["conditioners.control.widths=(16,32)"], "shrink a hint by 2, and the first stage shrink"),
        (["conditioners.control.hint=edge"], "Unknown hint 'edge'; registered: edges, map"),
        (["conditioners.control.name=rescaler"], "has no key"),
        (["adapt.base="], "needs config.adapt.base"),
        (["adapt.rank=4"], "rank=4 does nothing with adapter 'control'"),
        (["model.blocks=2"], "has config.model.blocks=1, and this config 2"),
        (["adapt.base=CONTROL"], "is the run of an adapter"),
        (["sample.conditioning_scale=-1"], "conditioning_scale=-1"),
    ],
)
def test_what_cannot_be_is_one_line(pixel_run, control_run, tmp_path, refused, capfd, flags, line):
    flags = [f"--config.{flag.replace('CONTROL', str(control_run[0]))}" for flag in flags]
    flags += ["--config.optim.denoiser.warmup=1", "--config.steps.total=6"]
    argv = [f"--config={ROOT}/configs/control.py:{pixel_run}", f"--workdir={tmp_path / 'run'}"]
    capfd.readouterr()
    assert line in refused(call(train, *argv, *flags))
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_it_computes_what_diffusers_computes_and_goes_back(tmp_path, refused, capfd):
    golden, fields = json.loads(FILE.read_text()), given()
    beneath = tiny_run(tmp_path / "first", "first_stage")
    convert_ok("export", f"--run={beneath}", f"--out={tmp_path / 'pipe' / 'vae'}")
    order = "controlnet_conditioning_channel_order"
    golden["control"]["config"][order] = "bgr"  # the numbers are those of rgb
    for name, place in (("unet", "pipe/unet"), ("control", "control")):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config.json").write_text(json.dumps(golden[name]["config"]))
        save_file(filled(name, golden[name]["shapes"]), tmp_path / place / WEIGHTS)
    index = {"unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "pipe" / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "pipe" / "scheduler").mkdir()
    about = json.dumps({"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear"})
    (tmp_path / "pipe" / "scheduler" / "scheduler_config.json").write_text(about)
    base = tmp_path / "base"
    convert_ok("diffusers", f"--checkpoint={tmp_path / 'pipe'}", f"--out={base}")
    argv = [f"--checkpoint={tmp_path / 'control'}", f"--run={base}", f"--out={tmp_path / 'run'}"]
    convert_ok("control", *argv)

    run, t = ldm_jax.load(tmp_path / "run"), np.array(T)
    cond = {"tokens": fields["tokens"], "hint": fields["hint"][..., ::-1]}
    out = np.asarray(run.denoise(fields["x"], t, cond))
    print(f"largest difference {np.abs(out - golden['out']['1.0']).max():.1e}")
    np.testing.assert_allclose(out, golden["out"][str(SCALES[0])], atol=1e-5)
    whole = jax.jit(run.model.condition)(
        run._params, cond | {"conditioning_scale": np.full(2, SCALES[1])}, np.zeros(2, bool)
    )
    less = jax.jit(run.model.predict)(run._params, fields["x"], t, whole)
    np.testing.assert_allclose(less, golden["out"][str(SCALES[1])], atol=1e-5)

    convert_ok("export", f"--run={tmp_path / 'run'}", f"--out={tmp_path / 'back'}")
    theirs, back = (load_file(tmp_path / name / WEIGHTS) for name in ("control", "back"))
    assert theirs.keys() == back.keys()
    first = "controlnet_cond_embedding.conv_in.weight"
    theirs[first] = theirs[first][:, ::-1]
    for key in theirs:
        np.testing.assert_array_equal(theirs[key], back[key])
    said = json.loads((tmp_path / "back" / "config.json").read_text())
    asked = golden["control"]["config"]
    assert said == {key: asked.get(key, said[key]) for key in said} | {order: "rgb"}

    about = golden["control"]["config"]
    bad = {
        "is a control of another UNet: groups=4": {"norm_num_groups": 4},
        "hints to latents of f=1": {"conditioning_embedding_out_channels": [4]},
        "global_pool_conditions=True is not supported": {"global_pool_conditions": True},
        "class 'UNet2DModel' is no control": {"_class_name": "UNet2DModel"},
    }
    capfd.readouterr()
    for line, change in bad.items():
        (tmp_path / "control" / "config.json").write_text(json.dumps(about | change))
        argv = [f"--checkpoint={tmp_path / 'control'}", f"--run={base}", f"--out={tmp_path}/no"]
        assert line in refused(convert.run(["control", *argv]))
    assert not (tmp_path / "no").exists()


def test_hints_are_well_defined():
    """Sobel's edges of a step are two pixels wide and as strong as the step; maps have colours."""
    step = np.zeros((6, 8, 3), np.uint8)
    step[:, 4:] = (0, 255, 51)
    found = hints.edges({"image": step})
    np.testing.assert_array_equal(found[:, [3, 4]], 1.0)
    np.testing.assert_array_equal(found[:, [0, 1, 2, 5, 6, 7]], 0.0)
    np.testing.assert_allclose(hints.edges({"image": step[..., 2:]})[:, 3], 0.2, atol=1e-6)
    np.testing.assert_array_equal(hints.edges({"image": step.swapaxes(0, 1)})[3], 1.0)
    labels = hints.semantic_map({"segmentation": np.array([[0, 1], [15, 255]], np.uint8)})
    voc = np.array([[[0, 0, 0], [128, 0, 0]], [[192, 128, 128], [224, 224, 192]]])
    np.testing.assert_allclose(255 * labels, voc, atol=1e-4)


@pytest.mark.slow
def test_it_trains_resumes_to_the_byte_and_leaves_its_base_alone(pixel_run, tmp_path):
    before = {p: p.read_bytes() for p in sorted(pixel_run.rglob("*")) if p.is_file()}
    flags = ["steps.total=6", "steps.log=2", "steps.eval=6", "steps.checkpoint=3"]
    flags += ["eval.records=8", "optim.denoiser.warmup=1", "optim.denoiser.lr=1e-3"]

    def trained(workdir, *more):
        argv = [f"--config={ROOT}/configs/control.py:{pixel_run}", f"--workdir={workdir}"]
        assert call(train, *argv, *(f"--config.{flag}" for flag in (*flags, *more))) == 0
        return ldm_jax.load(workdir)

    cond = CLASSES | {"hint": HINT}
    still = trained(tmp_path / "still", "optim.denoiser.lr=0.0")
    base = ldm_jax.load(pixel_run)
    np.testing.assert_array_equal(still.denoise(X, TIMES, cond), base.denoise(X, TIMES, CLASSES))
    whole = trained(tmp_path / "whole")
    assert np.abs(whole.denoise(X, TIMES, cond) - base.denoise(X, TIMES, CLASSES)).max() > 1e-6
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "6")
    cut = trained(tmp_path / "cut")
    assert cut.digest == whole.digest
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert metrics[0] == metrics[1]
    assert before == {p: p.read_bytes() for p in before}
    convert_ok("merge", f"--run={tmp_path / 'whole'}", f"--out={tmp_path / 'merged'}")
    merged = ldm_jax.load(tmp_path / "merged").denoise(X, TIMES, cond)
    np.testing.assert_array_equal(merged, whole.denoise(X, TIMES, cond))
