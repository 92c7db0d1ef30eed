"""`ldm_jax.bench`, on networks too small for its figures to mean anything."""

import functools
import json

import jax
import numpy as np
import pytest
from calling import call

from ldm_jax import bench
from ldm_jax.base import config as config_lib
from ldm_jax.cost import benchmarks, convolutions, flops, gan, programs, timing

FIRST = ["--config=configs/debug.py", "--repeats=2"]
SECOND = ["--config=configs/debug.py:ldm", "--config.first_stage=identity"]
PIXELS = {"first_stage": "identity", "model.mult": "(1,)", "model.attention": "()"}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp("bench") / "bench.json"
    assert call(bench, *FIRST, "--parts=encode,decode,data,dispatch", f"--json={file}") == 0
    return file


def test_every_figure_can_be_worked_out_again(file):
    found = json.loads(file.read_text())
    rate = found["matmul"]["flops_per_second"]
    assert rate == pytest.approx(2 * found["matmul"]["side"] ** 3 / found["matmul"]["seconds"])
    for part in ("encode", "decode"):
        clock = found[part]
        assert clock["seconds_min"] <= clock["seconds"] <= clock["seconds_max"]
        assert clock["images_per_second"] == pytest.approx(8 / clock["seconds"])
        devices = found["machine"]["devices"]
        assert clock["mfu"] == pytest.approx(clock["flops"] / clock["seconds"] / rate / devices)
        assert clock["planned_bytes"] > 0 and 0 < clock["trace_seconds"] < clock["compile_seconds"]
    assert found["dispatch"]["arrays"] > 100 and found["dispatch"]["seconds"] > 0
    data, cores = found["data"], found["machine"]["cores"]
    assert 0 < data["core_seconds_per_image"] * data["images_per_second"] < 1.1 * cores


def test_what_became_slower_is_named(file, tmp_path, refused):
    found, slow = json.loads(file.read_text()), tmp_path / "slow.json"
    assert call(bench, f"--compare={file},{file}") == 0
    found["decode"]["seconds"] *= 1.5
    slow.write_text(json.dumps(found))
    assert call(bench, f"--compare={slow},{file}") == 0
    assert "slower: decode" in refused(call(bench, f"--compare={file},{slow}"), 1)
    assert call(bench, f"--compare={file},{slow}", "--tolerance=1.6") == 0
    found["data"] = {"left_out": "no records here"}
    slow.write_text(json.dumps(found))
    assert call(bench, f"--compare={file},{slow}", "--tolerance=1.6") == 0


@pytest.mark.parametrize(
    "argv, said",
    [
        ([], "--config is missing"),
        ([*FIRST, "--parts=trian"], "did you mean 'train'"),
        ([*FIRST, "--against=rust"], "use diffusers"),
        (["--compare=one.json"], "wants two files"),
        (["--compare=one.json,two.json"], "one.json cannot be read"),
        ([*FIRST, "--batch_size=3"], "must divide by 8"),
        ([*FIRST, "--config.model.norm_kernel=pallas"], "norm_kernel=pallas with 8 devices"),
        (
            [*FIRST, "--config.model.norm_kernel=palas"],
            "must be 'xla' or 'pallas'",
        ),
        ([*FIRST, "--steps=10", "--guidance=2"], "--steps and --guidance: a first stage draws no"),
        (
            [*FIRST, "--config.mesh.data=3"],
            "config.mesh: (data=3, fsdp=1, spatial=1, tensor=1)",
        ),
        ([*FIRST, "--config.mesh.tensor=8"], "config.mesh.tensor=8 has nothing to split"),
        ([*SECOND, "--config.model.attention_kernel=flash"], "'pallas' or 'auto'"),
    ],
)
def test_wrong_input_is_one_line(argv, said, refused):
    assert said in refused(call(bench, *argv))


def test_a_steps_work_is_three_forward_passes():
    benchmark = benchmarks.Benchmark(config_lib.load("configs/debug.py:ldm", PIXELS))
    work = benchmark.training_flops()
    program = programs.training(benchmark.config, benchmark.mesh, cached=True)
    # No gradient leads to the images, so a step does a little less.
    assert 0.85 * work < program.flops() <= work


@pytest.mark.slow
def test_the_whole_of_a_second_stage(tmp_path):
    flags = [f"--config.{key}={value}" for key, value in PIXELS.items()]
    argv = ["--config=configs/debug.py:ldm", "--repeats=1", f"--json={tmp_path}/b.json", *flags]
    assert call(bench, *argv, "--parts=train,sample,checkpoint", f"--profile={tmp_path}/t") == 0
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["checkpoint"]["bytes"] > 0 and found["sample"]["steps"] == 4
    shares = [each["share"] for each in found["train"]["costliest"]]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1


def test_each_convolution_is_found_as_often_as_it_occurs_and_timed_with_both_gradients():
    def network(x, kernel):
        convolve = functools.partial(
            jax.lax.conv_general_dilated,
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.jit(convolve, static_argnames="window_strides")(x, kernel, window_strides=(1, 1))
        x = convolve(x, kernel, window_strides=(1, 1))
        return convolve(x, kernel, window_strides=(2, 2))

    shapes = (
        jax.ShapeDtypeStruct((2, 8, 8, 4), "float32"),
        jax.ShapeDtypeStruct((3, 3, 4, 4), "float32"),
    )
    found = convolutions.find(network, *shapes)
    assert sorted(found.values()) == [1, 2]
    work = sum(times * one.work for one, times in found.items())
    assert work == flops.count(network, *shapes)
    clock = convolutions.clock(found, repeats=1)
    assert clock["flops"] == 3 * work and len(convolutions.lines(clock)) == 2
    for shape in clock["shapes"]:
        assert set(shape["seconds"]) == set(convolutions.KINDS) and min(shape["rate"].values()) > 0
    slow = clock["shapes"][0]
    slow["slow"] = ["kernel_gradient"]
    assert any("SLOW: kernel_gradient" in line for line in convolutions.lines(clock))


def test_a_gans_generator_is_found_by_what_it_costs():
    for size, of, wanted in ((8, gan.operations, 1e7), (16, gan.parameters, 4e5)):
        one = gan.nearest(size, of, wanted)
        for other in (one.width - 2, one.width + 2):
            assert abs(of(one) - wanted) <= abs(of(gan.Generator(size, other)) - wanted)
    images = jax.eval_shape(one.apply, gan.variables(one), gan.latent(3))
    assert images.shape == (3, 16, 16, 3)


def test_memory_of_a_call_is_what_it_holds_at_its_peak():
    """Not what it allocates in all, and not what is free again before it ends."""
    size = 2**25
    twice = [timing.resident_growth(lambda: np.ones(size, np.uint8).sum()) for _ in range(2)]
    both = timing.resident_growth(lambda: (np.ones(size, np.uint8), np.ones(size, np.uint8)))
    if both is not None:  # a system that tells
        assert all(0.9 * size < grown < 1.5 * size for grown in twice)
        assert 1.9 * size < both < 2.5 * size
