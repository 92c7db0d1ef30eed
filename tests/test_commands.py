"""The commands, end to end on configs/debug.py, and every way to call them wrong."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from calling import call
from PIL import Image

import ldm_jax
from ldm_jax import cli, evaluate, sample, train
from ldm_jax.base import disk, errors

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEBUG = ROOT / "configs" / "debug.py"
# Small networks besides: the losses have tests of their own, and compiling is what takes time.
SMALL = {
    "first_stage": ["--config.loss.disc_weight=0.0"],
    "ldm": ["--config.model.mult=(1,)", "--config.model.attention=()"],
}
SHORT = ["--config.steps.total=4", "--config.steps.log=2", "--config.steps.eval=4"]


def call_train(variant, workdir, *overrides) -> int:
    return call(train, f"--config={DEBUG}:{variant}", f"--workdir={workdir}", *overrides)


def summary(folder) -> dict:
    return json.loads((pathlib.Path(folder) / "summary.json").read_text())


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("commands") / "first_stage"
    assert call_train("first_stage", workdir, *SHORT, *SMALL["first_stage"]) == 0
    return workdir


@pytest.fixture(scope="module")
def ldm(first_stage):
    workdir = first_stage.parent / "ldm"
    given = [*SHORT, *SMALL["ldm"], f"--config.first_stage={first_stage}"]
    assert call_train("ldm", workdir, *given) == 0
    return workdir


@pytest.fixture(scope="module")
def run(ldm):
    return ldm_jax.load(ldm)


@pytest.fixture(scope="module")
def samples(ldm):
    out = ldm.parent / "samples"
    assert call(sample, f"--run={ldm}", f"--out={out}", *SAMPLING) == 0
    return out


SAMPLING = ["--num=20", "--batch_size=8", "--steps=2", "--shard_size=8"]
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)


def test_a_run_holds_what_the_contract_says(first_stage, ldm):
    for workdir in (first_stage, ldm):
        for name in ("config.json", "metrics.jsonl", "summary.json", "checkpoints/4", "images"):
            assert (workdir / name).exists(), name
        assert list(workdir.glob("events.out.tfevents*")) and list(workdir.glob("images/*.png"))
        assert [line["step"] for line in disk.read_jsonl(workdir / "metrics.jsonl")] == [2, 4, 4]
    assert {"steps", "seconds", "psnr_db", "ssim", "l1", "train"} <= summary(first_stage).keys()
    assert summary(ldm)["error"] > 0


def test_both_stages_encode_and_decode(first_stage, run):
    first = ldm_jax.load(first_stage)
    z = first.encode(IMAGES)
    assert z.shape == (2, 8, 8, 2) and first.decode(z).shape == IMAGES.shape
    scale = json.loads((run.path / "latents.json").read_text())["scale"]
    np.testing.assert_allclose(run.encode(IMAGES), scale * z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run.decode(scale * z), first.decode(z), atol=1e-5)


def test_the_raw_weights_are_not_the_averaged_ones(first_stage):
    averaged, raw = (ldm_jax.load(first_stage, ema=ema) for ema in (True, False))
    assert averaged.digest != raw.digest


def test_sampling_is_determined_by_seed_noise_and_condition(run):
    noise = np.random.default_rng(1).normal(size=(2, 8, 8, 2)).astype(np.float32)
    settings = dict(steps=2, eta=0.0, cond={"class": [0, 5]}, latents=True)
    draw = lambda **changes: np.asarray(run.sample(2, **settings | changes))
    np.testing.assert_array_equal(draw(seed=1, noise=noise), draw(seed=2, noise=noise))
    np.testing.assert_array_equal(draw(seed=1), draw(seed=1))
    assert np.any(draw(seed=1) != draw(seed=2))
    np.testing.assert_allclose(draw(seed=1)[1], draw(seed=1, first=1)[0], atol=1e-2)
    assert draw(seed=1).shape == (2, 8, 8, 2)


def test_what_a_call_leaves_open_of_sampling_the_runs_config_says(run, ldm, tmp_path):
    clipped = shutil.copytree(ldm, tmp_path / "clipped")
    config = disk.read_json(clipped / "config.json")
    config["sample"]["clip"] = 0.1
    disk.write_json(clipped / "config.json", config)
    draw = lambda run, **said: np.asarray(run.sample(2, steps=2, latents=True, **said))
    own = draw(ldm_jax.load(clipped))
    np.testing.assert_array_equal(own, draw(run, clip=0.1))
    assert np.any(own != draw(run))


def test_denoise_takes_fields_or_ready_tokens_or_nothing(run):
    z, t = np.zeros((2, 8, 8, 2), np.float32), np.array([0, 999])
    assert run.denoise(z, t).shape == z.shape
    assert run.denoise(z, t, {"class": np.array([1, 2])}).shape == z.shape
    for cond, words in [
        ({"class": np.array([1, 17])}, "first wrong id 17"),  # 16 is the null class
        ({"clas": np.array([1, 2])}, "did you mean 'class'"),
    ]:
        with pytest.raises(errors.UsageError, match=words):
            run.denoise(z, t, cond)


def test_a_folder_with_other_samples_is_refused(samples, ldm, refused):
    before = (samples / "manifest.json").read_bytes()
    code = call(sample, f"--run={ldm}", f"--out={samples}", *SAMPLING, "--guidance=3")
    assert "guidance: 2.0 -> 3.0" in refused(code)
    assert (samples / "manifest.json").read_bytes() == before


def test_evaluate_measures_runs_and_samples(first_stage, ldm, samples):
    assert call(evaluate, f"--run={first_stage}") == 0
    measured, trained = summary(first_stage / "evaluation"), summary(first_stage)
    assert measured["psnr_db"] == pytest.approx(trained["psnr_db"], rel=1e-5)
    assert measured["records"] == 16
    assert call(evaluate, f"--run={ldm}") == 0
    assert summary(ldm / "evaluation")["error"] == pytest.approx(summary(ldm)["error"], rel=1e-4)
    assert call(evaluate, f"--samples={samples}") == 0
    assert 0 <= summary(samples / "evaluation")["class_accuracy"] <= 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--size=16x"], "--size=16x"),
        (["--size=17"], "multiples of 2"),
        (["--size=0x16"], "multiples of 2"),
        (["--size=1x2x3"], "HxW"),
        (["--labels=3,99"], "99 is not a class id in 0..15"),
        (["--labels=cat"], "--labels=cat"),
        (["--sampler=dimm"], "did you mean 'ddim'"),
        (["--spacing=exakt"], "did you mean 'exact'"),
        (["--steps=2000"], "steps=2000"),
        (["--batch_size=12"], "12 must divide by 8"),
        (["--worker=2/2"], "--worker=2/2"),
        (["--format=gif"], "gif"),
        (["--cond=none.npz"], "none.npz"),
        (["--num=0"], "num"),
        (["--nun=3"], "nun"),
        (["--config.seed=1"], "--config"),
        (["stray"], "stray"),
    ],
)
def test_sample_refuses_in_one_line(flags, words, ldm, tmp_path, refused):
    code = call(sample, f"--run={ldm}", f"--out={tmp_path / 'out'}", *flags)
    assert words in refused(code)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("ids", "words"), [([3, -1], "wrong id -1"), (["3", "cat"], "class")])
def test_a_file_of_classes_that_are_none_leaves_nothing_written(ids, words, ldm, tmp_path, refused):
    np.savez(tmp_path / "cond.npz", **{"class": ids})
    flags = f"--out={tmp_path / 'out'}", f"--cond={tmp_path / 'cond.npz'}", "--num=2"
    line = refused(call(sample, f"--run={ldm}", *flags))
    assert f"--cond={tmp_path / 'cond.npz'}" in line and words in line
    assert not (tmp_path / "out").exists()


def test_sample_and_evaluate_want_a_fitting_run(first_stage, ldm, tmp_path, refused):
    out = f"--out={tmp_path / 'out'}"
    other = shutil.copytree(first_stage, tmp_path / "no_stage")
    disk.write_json(other / "config.json", {"_class_name": "AutoencoderKL"})  # diffusers' own
    line = refused(call(sample, f"--run={ldm}", f"--decoder={other}", out))
    assert f"{other} is no run" in line and "names no stage" in line
    shutil.rmtree(other)
    assert "first stage" in refused(call(sample, f"--run={first_stage}", out))
    assert "is not a run" in refused(call(sample, f"--run={tmp_path}", out))
    assert "--run is missing" in refused(call(sample, out))
    assert "is not a run" in refused(call(evaluate, f"--run={tmp_path}"))
    assert "holds no images" in refused(call(evaluate, f"--samples={tmp_path}"))
    assert "Give one of" in refused(call(evaluate))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--config.modle.width=3"], "did you mean 'model'"),
        (["--config.batch_size=many"], "wants int"),
        (["--config.batch_size"], "has no value"),
        (["--config.model=3"], "group"),
        (["--config.data.source=folder", "--config.data.path={tmp}/none"], "is not a folder"),
        (["--config.data.source=folder", "--config.data.path={tmp}"], "holds no images"),
        (["--config.data.source=foldre"], "did you mean 'folder'"),
        (["--config.data.size=15"], "size=15 must divide by 2"),
        (["--config.batch_size=12"], "12 must divide by 8"),
        (["--config.eval.batch_size=12"], "config.eval.batch_size=12 must divide by 8"),
        (["--config.batch_size=0"], "batch_size=0"),
        (["--config.accumulate=0"], "accumulate=0"),
        (["--config.accumulate=3"], "accumulate=3"),
        (["--config.mesh.data=3"], "config.mesh"),
        (["--config.steps.log=0"], "steps.log=0"),
        (["--config.eval.records=0"], "records=0"),
        (["--config.dtype=float16"], "dtype"),
        (["--config.stage=paint"], "autoencode, diffuse"),
        (["--config.data.holdout=1.0"], "holdout=1.0"),
        (["--config.data.crop=middle"], "crop"),
        (["--config.seed=-1"], "seed=-1"),
        (["--config.init_grow=True"], "give the run to start from as config.init_from=RUN"),
        (["--config.loss.perceptual_weight=1.0"], "vgg16-397923af.pth"),
        (["--config.loss.restart=5"], "config.loss: restart=5 does nothing without a codebook"),
        (
            ["--config.loss.perceptual_crop=-8"],
            "perceptual_crop=-8 must be a whole number of at least 0",
        ),
        (["--config.loss.terms.halved=1.0", "--config.data.size=18"], "size=18 must divide by 4"),
        (["--config.loss.disc_loss=henge"], "did you mean 'hinge'"),
        (["--config.model.bottleneck=kll"], "Unknown bottleneck 'kll'"),
        (["--config.discriminator.norm=bach"], "norm=bach"),
        (["--config.optim.autoencoder.name=adan"], "did you mean 'adam'"),
        (["--config.optim.autoencoder.schedule=cosin"], "did you mean 'cosine'"),
        (["--config.optim.autoencoder.warmup=100"], "warmup=100"),
        (["--wrokdir=x"], "workdir"),
        (["stray"], "stray"),
    ],
)
def test_train_refuses_in_one_line_and_leaves_no_workdir(overrides, words, tmp_path, refused):
    overrides = [text.format(tmp=tmp_path) for text in overrides]
    code = call_train("first_stage", tmp_path / "run", *overrides)
    assert words in refused(code)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "config.first_stage is empty"),
        (["--config.first_stage={tmp}"], "is not a run"),
        (["--config.first_stage=identity:4"], "images have 3 channels"),
        (["--config.first_stage=identity", "--config.sample.sampler=dimm"], "did you mean 'ddim'"),
        (["--config.first_stage=identity", "--config.process.prediction=epsi"], "prediction"),
        (["--config.first_stage=identity", "--config.process.schedule=linaer"], "schedule"),
        (["--config.first_stage=identity", "--config.loss.weight=unifrom"], "'uniform'"),
        (["--config.first_stage=identity", "--config.loss.distance=l3"], "distance"),
        (["--config.first_stage=identity", "--config.model.heads=2"], "config.model: heads=2"),
        (["--config.first_stage=identity", "--config.data.size=17"], "size=17"),
        (
            ["--config.first_stage=identity", "--config.latents.std=(1.0,)"],
            "each of the 3 channels",
        ),
        (
            ["--config.first_stage=identity", "--config.process.density_shift=2"],
            "does nothing with",
        ),
        (
            [
                "--config.first_stage=identity",
                "--config.loss.weight=min_snr",
                "--config.process.zero_terminal_snr=True",
                "--config.process.prediction=v",
            ],
            "config.loss: weight='min_snr' gives timestep 999",
        ),
    ],
)
def test_a_second_stage_is_refused_alike(overrides, words, tmp_path, refused):
    overrides = [text.format(tmp=tmp_path) for text in overrides]
    code = call_train("ldm", tmp_path / "run", *overrides)
    assert words in refused(code)
    assert not (tmp_path / "run").exists()


def test_missing_files_and_flags_are_one_line(tmp_path, refused):
    workdir = f"--workdir={tmp_path / 'run'}"
    debgu = ROOT / "configs" / "debgu.py"
    assert "did you mean" in refused(call(train, f"--config={debgu}", workdir))
    assert "did you mean 'ldm'" in refused(call(train, f"--config={DEBUG}:lmd", workdir))
    assert "--config is missing" in refused(call(train, workdir))
    assert "--workdir is missing" in refused(call(train, f"--config={DEBUG}"))


@pytest.mark.parametrize("command", [train, sample, evaluate])
def test_help_is_readable(command, capfd):
    assert call(command, "--help") == 0
    out = capfd.readouterr().out
    assert command.__doc__.strip().splitlines()[0] in out and "--" in out


def test_values_that_are_not_finite_stop_the_run_and_name_step_and_loss(tmp_path, capfd):
    tiny = ["--config.model.mult=(1,)", "--config.loss.disc_weight=0.0"]
    bad = ["optim.autoencoder.lr=1e30", "max_bad_steps=0", "max_rollbacks=0"]
    bad = [f"--config.{setting}" for setting in bad]
    assert call_train("first_stage", tmp_path / "run", *SHORT, *tiny, *bad) == cli.EXIT_FAILED
    last = capfd.readouterr().err.splitlines()[-1]
    assert re.search(r"autoencoder/(loss|grad_norm) is (nan|inf) at step \d", last), last
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


@pytest.fixture
def folder(tmp_path):
    """Forty small pictures, one of them broken."""
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for i in range(40):
        pixels = rng.integers(0, 256, (20, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{i:02d}.png")
    broken = tmp_path / "data" / "13.png"
    broken.write_bytes(broken.read_bytes()[:200])
    return tmp_path / "data"


def test_a_broken_picture_is_replaced_and_listed(folder, tmp_path, capfd):
    data = ["--config.data.source=folder", f"--config.data.path={folder}"]
    data += SMALL["first_stage"]  # four steps of eight see each of the thirty training records
    allowed = "--config.data.max_bad_fraction=0.1"
    assert call_train("first_stage", tmp_path / "run", *SHORT, *data, allowed) == 0
    listed = disk.read_jsonl(tmp_path / "run" / "bad_records_0000.jsonl")
    assert [record["name"] for record in listed] == ["13.png"]
    capfd.readouterr()
    code = call_train("first_stage", tmp_path / "stopped", *SHORT, *data)
    last = capfd.readouterr().err.splitlines()[-1]
    assert code == cli.EXIT_FAILED and "'13.png'" in last and "max_bad_fraction" in last, last
