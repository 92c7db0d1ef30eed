"""`ldm_jax.plan`: programs for devices that are elsewhere."""

import importlib.util
import json

import costs
import jax
import pytest
from calling import call

from ldm_jax import plan
from ldm_jax.base import config as config_lib
from ldm_jax.base import errors, shard, tree
from ldm_jax.base import record as record_lib
from ldm_jax.cost import estimates, programs, topologies
from ldm_jax.runs import data as data_lib

TINY = {"first_stage": "identity", "model.mult": "(1,)", "model.attention": "()"}
CONFIG = ["--config=configs/debug.py:ldm", *(f"--config.{k}={v}" for k, v in TINY.items())]
FLAGS = [*CONFIG, "--topology=cpu:8"]


@pytest.fixture(scope="module")
def config():
    return data_lib.resolved(config_lib.load("configs/debug.py:ldm", TINY))


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    out = tmp_path_factory.mktemp("plan")
    assert call(plan, *FLAGS, f"--out={out}") == 0
    return out


def test_a_plan_weighs_the_step_and_the_sampler(planned):
    summary = json.loads((planned / "summary.json").read_text())
    train, sample = summary["train"], summary["sample"]
    assert summary["mesh"] == {"data": 8, "fsdp": 1, "spatial": 1, "tensor": 1}
    assert train["fits"] and sample["fits"] and train["flops"] > 0
    assert train["collectives"]["all-reduce"]["bytes"] > train["memory"]["params"]
    parts = {k: v for k, v in train["memory"].items() if k != "peak"}
    assert sum(parts.values()) == train["memory"]["peak"]
    assert "HloModule" in (planned / "train.hlo.txt").read_text()


def test_what_is_planned_costs_no_more_than_the_table_says(planned):
    rows = {row.name: row for row in costs.table()}
    found = costs.planned(costs.PIXELS, planned)
    assert [row.program for row in found] == ["train", "sample"]
    assert not [said for row in found for said in costs.grown(rows[row.name], row)]


def test_shapes_say_how_much_each_device_holds(config):
    whole = estimates.arguments(programs.training(config, shard.make_mesh(data=8)))
    parts = estimates.arguments(programs.training(config, shard.make_mesh(data=1, fsdp=8)))
    state = programs.training(config, shard.make_mesh(data=8)).arguments["state"]
    assert whole["params"] == tree.nbytes(state["params"])
    assert parts["params"] <= whole["params"] and parts["batch"] == whole["batch"]
    pixels = config.batch_size * config.data.size**2 * 3
    assert whole["batch"] * 8 == 4 * (pixels + config.batch_size)  # images and classes


def test_what_is_planned_is_what_is_trained(pixel_run):
    """The abstract state has the leaves of a checkpoint that training wrote."""
    from ldm_jax.engine import checkpoint

    config = record_lib.read(pixel_run)
    state = programs.training(config, shard.make_mesh(data=1, devices=jax.devices()[:1]))
    planned = {name: leaf.shape for name, leaf in tree.named_leaves(state.arguments["state"])}
    saved = checkpoint.saved(pixel_run)
    assert planned.keys() == {name for name, _ in tree.named_leaves(saved)}


def test_too_little_memory_is_refused_with_advice(capfd):
    assert call(plan, *FLAGS, "--memory_gib=0.0001", "--parts=train") == 2
    err = capfd.readouterr().err
    assert "train does not fit" in err and "--config.mesh.fsdp=8" in err


@pytest.mark.parametrize(
    "message, peak, limit",
    [
        (
            "memory required for HLO temporaries (36.5G) exceeds available HBM (15.75G).",
            38.5,
            15.75,
        ),
        ("Ran out of memory in memory space hbm. Used 19.00G of 15.75G hbm.", 19, 15.75),
        ("out of memory", 2, 0),
    ],
)
def test_what_the_compiler_says_when_it_runs_out(message, peak, limit):
    found = estimates.exhausted(f"RESOURCE_EXHAUSTED: {message}", held=2 * 2**30)
    assert found == (peak * 2**30, limit * 2**30)


@pytest.mark.parametrize(
    "topology, said",
    [
        ("v5x:4x4", "did you mean"),
        ("v5e:4x4x4", "2 sides"),
        ("v5e:fast", "2 sides"),
        ("cuda:8", "needs --target"),
        ("cpu:none", "give a number of devices"),
    ],
)
def test_a_topology_that_is_none_is_one_line(topology, said):
    with pytest.raises(errors.UsageError, match=said):
        topologies.open_topology(topology)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for TPUs needs: pip install libtpu",
)
def test_a_tpu_slice_that_is_elsewhere(tmp_path):
    assert call(plan, *CONFIG, "--topology=v5e:2x2", f"--out={tmp_path}", "--parts=train") == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["chip"] == "TPU v5e" and 0 < summary["train"]["mfu_estimate"] < 1


def test_a_norm_kernel_that_xla_cannot_split_wants_one_device(refused):
    code = call(plan, *FLAGS, "--config.model.norm_kernel=pallas", "--parts=train")
    assert "norm_kernel=pallas with 8 devices" in refused(code)
