"""The command `evaluate` and the evaluators of training: figures, protocols, broken protocols."""

import json
import shutil

import jax
import make_metrics_golden as golden
import numpy as np
import pytest
import test_tasks
from calling import call
from PIL import Image
from test_commands import SHORT, SMALL, call_train, summary
from tokenizers.pre_tokenizers import ByteLevel

from ldm_jax import evaluate, sample
from ldm_jax.base import disk, shard, tensorfile
from ldm_jax.data import bytepairs
from ldm_jax.evaluation import distances, imagesets, measures, reference, suite
from ldm_jax.metrics import features
from ldm_jax.metrics.frechet import Moments, frechet_distance
from ldm_jax.runs import data, kinds
from ldm_jax.weights.readers import READERS

EVAL = "--config.eval."
POCKET = f"{EVAL}features=pocket"
COUNT = 40
D = 12


def pocket(weights, pixels):
    """An extractor of a dozen features, for quick tests: a map of 2 x 2 mean colours."""
    b, h, w, c = pixels.shape
    means = pixels.reshape(b, 2, h // 2, 2, w // 2, c).mean((2, 4)).reshape(b, D)
    return (means / 64.0) @ weights, None


features.EXTRACTORS.register("pocket")(
    features.Extractor("pocket", D, 0, "none", "fd_pocket", "_pocket", pocket)
)
READERS.register("pocket")(np.load)
own = dict(published=("0" * 64,), own=("clip_score",), embed=lambda weights, ids: ids[:, :D] / 9.0)
features.EXTRACTORS.register("pair")(
    features.Extractor("pocket", D, 0, "none", "fd_pair", "_pair", pocket, **own)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(autouse=True)
def cache(folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    return folder / "cache" / "ldm_jax" / "references"


@pytest.fixture(scope="module")
def weights(folder):
    np.save(folder / "pocket.npy", np.random.default_rng(0).normal(size=(D, D)).astype(np.float32))
    return folder / "pocket.npy"


@pytest.fixture(scope="module")
def first_stage(folder, weights):
    """A VQ run that measured distances while it trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        given = [*SHORT, *SMALL["first_stage"], POCKET, f"{EVAL}weights={weights}"]
        given += [f"{EVAL}metrics=fd,kid"]
        assert call_train("vq", folder / "first_stage", *given) == 0
    return folder / "first_stage"


@pytest.fixture(scope="module")
def ldm(folder, first_stage, weights):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        given = [*SHORT, *SMALL["ldm"], f"--config.first_stage={first_stage}"]
        given += [POCKET, f"{EVAL}metrics=fd", f"{EVAL}weights={weights}", f"{EVAL}samples=24"]
        assert call_train("ldm", folder / "ldm", *given) == 0
    return folder / "ldm"


@pytest.fixture(scope="module")
def samples(folder, ldm):
    given = [f"--num={COUNT}", "--batch_size=8", "--steps=2", "--shard_size=16"]
    assert call(sample, f"--run={ldm}", f"--out={folder / 'samples'}", *given) == 0
    return folder / "samples"


@pytest.fixture
def measure(weights, tmp_path):
    """measure(--samples=..., ...) -> summary.json."""

    def run(*flags):
        out = tmp_path / f"out_{len(list(tmp_path.glob('out_*')))}"
        given = ["--features=pocket", f"--weights={weights}", "--bootstrap=2"]
        given += [*flags, f"--out={out}"]
        assert call(evaluate, *given) == 0
        return summary(out)

    return run


@pytest.fixture
def refuses(weights, refused):
    """refuses(flags) -> the line."""

    def run(*flags):
        given = ["--features=pocket", f"--weights={weights}", "--bootstrap=0"]
        return refused(call(evaluate, *given, *flags))

    return run


def pixels(job_folder):
    return np.concatenate(
        [p[m > 0] for p, m in imagesets.open_set(job_folder, "--samples").batches()]
    )


def test_training_measures_distances_at_its_evaluations(first_stage, ldm):
    (line,) = [x for x in disk.read_jsonl(first_stage / "metrics.jsonl") if "val/psnr_db" in x]
    assert line["val/rfd_pocket"] > 0 and "val/rkid_pocket_std" in line
    (line,) = [x for x in disk.read_jsonl(ldm / "metrics.jsonl") if "val/error" in x]
    assert line["val/fd_pocket"] > 0
    assert summary(ldm)["fd_pocket"] == line["val/fd_pocket"]


def test_training_measures_distances_under_conditions_made_of_records(weights):
    given = {"eval__metrics": "fd", "eval__weights": weights, "eval__features": "pocket"}
    config = test_tasks.load("superres", **given)
    source = data.open_source(config.data)
    config = data.resolve(config, source)
    params = jax.jit(kinds.of(config).model(config).init)(jax.random.key(0))
    mesh = shard.make_mesh()
    measure = distances.Distances(distances.request(config), config, source, mesh)
    frozen = shard.place({"first_stage": {}, "scale": np.float32(1)}, mesh)
    assert measure(2, shard.place({"denoiser": params}, mesh), frozen)["val/fd_pocket"] > 0


def test_evaluating_a_first_stage_repeats_what_training_measured(first_stage, measure):
    found = measure(f"--run={first_stage}", "--metrics=fd,kid")
    for name in ("rfd_pocket", "rkid_pocket"):
        assert found[name] == pytest.approx(summary(first_stage)[name], rel=1e-3)
        assert found[f"{name}_std"] >= 0
    assert found["psnr_db"] == pytest.approx(summary(first_stage)["psnr_db"], rel=1e-5)
    assert 0 < found["psnr_db_std"] < 5
    assert 1 <= found["codebook_perplexity"] <= 16 and 0 < found["codebook_usage"] <= 1
    assert len(found["latent_std"]) == 2 and 0 < found["latent_high_frequency"] < 1
    assert found["protocol"]["measurement"]["n"] == found["records"] == 16


OWN_METRIC = """
from ldm_jax.evaluation import suite
@suite.register("warmth")
def warmth(samples, reference, settings):
    return {"warmth": float(samples.features.mean())}
"""


def test_a_metric_of_ones_own_is_asked_for_by_a_plugin(samples, measure, tmp_path, monkeypatch):
    (tmp_path / "warm_metric.py").write_text(OWN_METRIC)
    monkeypatch.syspath_prepend(tmp_path)
    found = measure(f"--samples={samples}", "--plugins=warm_metric", "--metrics=warmth")
    assert np.isfinite(found["warmth_pocket"])


def test_captions_beside_images_are_scored_and_other_weights_are_in_the_name(
    tmp_path, weights, refused
):
    """The digits of weights that are not the published ones end every name."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{c}</w>" for c in letters), bytepairs.START, bytepairs.END]
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    shutil.copy(weights, tmp_path / "pair.npy")
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.fromarray(golden.pixels(8, 8)[0]).save(tmp_path / "images" / f"{i}.png")
    flags = [f"--samples={tmp_path / 'images'}", "--features=pair", f"--out={tmp_path / 'out'}"]
    flags += [f"--weights={tmp_path / 'pair.npy'}"]
    assert "clip_score needs captions" in refused(call(evaluate, *flags))
    for i in range(2):
        (tmp_path / "images" / f"{i}.txt").write_text("red" * i)
    assert "2.png has no caption, others have" in refused(call(evaluate, *flags))
    (tmp_path / "images" / "2.txt").write_text("of")
    assert call(evaluate, *flags) == 0
    name = f"clip_score_{tensorfile.digest(tmp_path / 'pair.npy')[:8]}"
    assert {name, f"{name}_std"} == set(summary(tmp_path / "out")["protocol"]["figures"])
    assert "cmmd needs CLIP's" in refused(call(evaluate, *flags, "--metrics=cmmd"))


def test_a_plugin_that_is_not_there_is_one_line(refused):
    line = refused(call(evaluate, "--samples=x", "--plugins=no_such_module"))
    assert "--plugins: no_such_module cannot be imported" in line


def test_a_run_without_weights_has_a_protocol_too(
    first_stage,
    ldm,
    tmp_path,
    capfd,
    refused,
):
    for run, name in ((first_stage, "psnr_db"), (ldm, "error")):
        out = f"--out={tmp_path / run.name}"
        assert call(evaluate, f"--run={run}", out) == 0
        assert {name, f"{name}_std"} <= set(summary(tmp_path / run.name)["protocol"]["figures"])
    own = tmp_path / first_stage.name
    assert call(evaluate, f"--summary={own}", f"--against={own}") == 0
    assert "psnr_db: " in capfd.readouterr().out
    code = call(evaluate, f"--summary={own}", f"--against={tmp_path / ldm.name}")
    assert "no figure in common" in refused(code)


def test_samples_are_the_same_from_a_job_a_folder_and_an_npz(samples, ldm, measure, tmp_path):
    np.savez(tmp_path / "images.npz", arr_0=pixels(samples))
    names = ("fd_pocket", "kid_pocket", "precision_pocket", "coverage_pocket")
    found = [
        measure(f"--samples={path}", f"--reference={ldm}")
        for path in (samples, samples / "images", tmp_path / "images.npz")
    ]
    for other in found[1:]:
        for name in names:
            assert other[name] == pytest.approx(found[0][name], rel=1e-6), name
    assert found[0]["protocol"]["measurement"] == found[1]["protocol"]["measurement"]
    assert found[0]["protocol"]["subject"]["steps"] == 2
    low, high = (found[0][f"fd_pocket_{end}"] for end in ("low", "high"))
    assert low < found[0]["fd_pocket"] < high


def test_the_distance_is_that_of_the_features(samples, ldm, weights, measure):
    found = measure(f"--samples={samples}", "--metrics=fd")["fd_pocket"]
    extractor, params, _ = measures.open_features("pocket", weights)
    extract = jax.jit(lambda x: extractor.apply(params, x)[0])
    real = [p[m > 0] for p, m in imagesets.open_set(ldm, "--reference").batches()]
    fake, real = (Moments.of(extract(x)) for x in (pixels(samples), np.concatenate(real)))
    assert found == pytest.approx(frechet_distance(fake, real), rel=1e-4)


def test_a_set_is_at_no_distance_from_itself(samples, measure):
    found = measure(f"--samples={samples}", f"--reference={samples}")
    assert abs(found["fd_pocket"]) < 1e-3
    assert found["precision_pocket"] == found["recall_pocket"] == 1
    assert found["coverage_pocket"] == 1


def test_reference_statistics_are_computed_once(samples, ldm, measure, cache):
    for file in cache.glob("*.npz"):
        file.unlink()
    first = measure(f"--samples={samples}", "--metrics=fd")
    (file,) = cache.glob("*.npz")
    file.write_bytes(file.read_bytes())
    before = file.stat().st_mtime_ns
    again = measure(f"--samples={samples}", "--metrics=fd")
    assert again["fd_pocket"] == first["fd_pocket"] and file.stat().st_mtime_ns == before
    # the file is a reference of its own, and so are others' mu and sigma
    from_file = measure(f"--samples={samples}", "--metrics=fd,kid", f"--reference={file}")
    assert from_file["fd_pocket"] == pytest.approx(first["fd_pocket"], rel=1e-9)
    statistics, foreign = reference.load(file), file.with_name("foreign.npz")
    np.savez(foreign, mu=statistics.mean, sigma=statistics.covariance)
    from_foreign = measure(f"--samples={samples}", "--metrics=fd", f"--reference={foreign}")
    assert from_foreign["fd_pocket"] == pytest.approx(first["fd_pocket"], rel=1e-9)


def test_figures_compare_only_where_the_protocols_are_equal(samples, ldm, measure, tmp_path, capfd):
    first = [f"--samples={samples}", "--metrics=fd"]
    measure(*first)
    own = tmp_path / "out_0"
    capfd.readouterr()
    measure(*first, f"--against={own}")
    assert "fd_pocket: " in capfd.readouterr().out
    flags = ["--summary=" + str(own), f"--against={own / 'summary.json'}"]
    assert call(evaluate, *flags) == 0
    assert "standard errors" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--reference={samples}"], "reference.fingerprint"),
        (["--reference_records=30"], "reference.records: 48 -> 30"),
        (["--samples={fewer}", "--reference={ldm}"], "n: 40 -> 12"),
        (["--bootstrap=5"], "settings.bootstrap: 2 -> 5"),
    ],
)
def test_another_protocol_is_refused_with_the_difference(
    change,
    words,
    samples,
    ldm,
    measure,
    weights,
    tmp_path,
    capfd,
    refused,
):
    measure(f"--samples={samples}", "--metrics=fd")
    np.savez(tmp_path / "fewer.npz", arr_0=pixels(samples)[:12])
    names = dict(samples=samples, ldm=ldm, fewer=tmp_path / "fewer.npz")
    change = [flag.format(**names) for flag in change]
    capfd.readouterr()
    flags = [f"--samples={samples}", "--metrics=fd", "--features=pocket", f"--weights={weights}"]
    code = call(evaluate, *flags, "--bootstrap=2", *change, f"--against={tmp_path / 'out_0'}")
    line = refused(code)
    assert "measured differently" in line and words in line


def test_broken_protocols_are_refused_in_one_line(samples, ldm, first_stage, refuses, tmp_path):
    def npz(name, **arrays):
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    given = f"--samples={samples}"
    flat = npz("flat.npz", arr_0=np.zeros((4, 16, 16), np.uint8))
    floats = npz("floats.npz", arr_0=np.zeros((4, 16, 16, 3)))
    named = npz("named.npz", images=np.zeros((4, 16, 16, 3), np.uint8))
    large = npz("large.npz", arr_0=np.zeros((9, 32, 32, 3), np.uint8))
    narrow = npz("narrow.npz", mu=np.zeros(64), sigma=np.eye(64))
    foreign = npz("foreign.npz", mu=np.zeros(D), sigma=np.eye(D))
    one = npz("one.npz", arr_0=np.zeros((1, 16, 16, 3), np.uint8))
    other = tmp_path / "other.npz"
    moments = suite.Features(Moments.of(np.random.rand(9, D)), np.zeros((9, D), np.float32))
    origin = {"features": "pocket", "resize": "another", "feature_weights": "x"}
    reference.save(other, reference.Reference.of(moments, origin))
    for flags, words in [
        ([given, "--metrics=fid"], "did you mean 'fd'"),
        ([given, "--metrics=is"], "--features=inception"),
        ([given, "--features=inception"], "not the published ones"),
        ([given, "--features=inceptoin"], "did you mean 'inception'"),
        ([given, "--weights="], "docs/evaluation.md"),
        ([given, f"--reference={large}"], "32x32, the samples are 16x16"),
        ([given, f"--reference={narrow}"], "of 64 features, pocket has 12"),
        ([given, f"--reference={foreign}", "--metrics=kid"], "mu and sigma"),
        ([given, f"--reference={other}"], "computed with resize=another"),
        ([given, f"--reference={tmp_path / 'none'}"], "neither a run"),
        ([given, f"--against={tmp_path}"], "summary.json cannot be read"),
        ([f"--samples={flat}", f"--reference={ldm}"], "[4, 16, 16]"),
        ([f"--samples={floats}", f"--reference={ldm}"], "float64"),
        ([f"--samples={named}", f"--reference={ldm}"], "holds images"),
        ([f"--samples={large}"], "needs a reference"),
        ([f"--samples={one}", f"--reference={ldm}", "--metrics=fd"], "need 2 images"),
        ([f"--run={ldm}"], "second stage"),
        ([f"--run={first_stage}", "--metrics=is"], "needs samples"),
        ([f"--run={first_stage}", "--lpips=one"], "give two files"),
        ([given, f"--run={ldm}"], "Give one of"),
    ]:
        given_metrics = [] if any("--metrics" in f for f in flags) else ["--metrics=fd"]
        line = refuses(*given_metrics, *flags)
        assert words in line, line


def test_few_images_are_warned_about(samples, ldm, measure, tmp_path, capfd):
    np.savez(tmp_path / "few.npz", arr_0=pixels(samples)[:9])
    given = [f"--samples={tmp_path / 'few.npz'}", f"--reference={ldm}"]
    measure(*given, "--metrics=fd,kid")
    err = capfd.readouterr().err
    for words in ("9 images for 12 features", "subsets of 9, not 1000"):
        assert words in err
    assert "extrapolates from 500 images for 1280" in "".join(
        suite.warnings(("fd_infinity",), 5_000, None, 1280, suite.Settings())
    )


def test_samples_of_a_run_that_is_gone_are_measured_against_a_folder(
    samples, folder, measure, tmp_path
):
    moved = tmp_path / "moved"
    shutil.copytree(samples, moved)
    manifest = json.loads((moved / "manifest.json").read_text()) | {"run": "gone"}
    (moved / "manifest.json").write_text(json.dumps(manifest))
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(12):  # of any size: cropped and resized to the samples'
        Image.fromarray(golden.pixels(20 + i, 30)[0]).save(photos / f"{i}.png")
    found = measure(f"--samples={moved}", f"--reference={photos}", "--metrics=fd")
    assert found["fd_pocket"] > 0
    assert found["protocol"]["measurement"]["reference"]["crop"] == "center"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["metrics=fd"], "config.eval.weights"),
        (["every=2"], "config.eval.every=2 does nothing without config.eval.metrics"),
        (["metrics=fid", "weights={weights}", "features=pocket"], "did you mean 'fd'"),
        (["metrics=is", "weights={weights}", "features=pocket"], "config.eval.metrics=is"),
        (
            ["metrics=fd", "weights={weights}", "features=pocket", "every=3"],
            "every=3 must be a multiple",
        ),
        (["metrics=fd", "weights={weights}", "features=inception"], "not the published ones"),
    ],
)
def test_training_refuses_distances_it_cannot_measure(
    overrides,
    words,
    weights,
    tmp_path,
    capfd,
    refused,
):
    given = [EVAL + text.format(weights=weights) for text in overrides]
    code = call_train("first_stage", tmp_path / "run", *SHORT, *SMALL["first_stage"], *given)
    assert words in refused(code)
    assert not (tmp_path / "run").exists()
