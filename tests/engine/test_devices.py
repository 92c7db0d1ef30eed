"""The headline: one device and eight compute the same run, whatever the mesh.

Both stages, ten steps, the adversary and its adaptive weight from step 0; batch rows over the
devices, parameters with optimizer moments and EMA (fsdp), layers' channels (tensor), the height of
images (spatial), and these together.
"""

import math
import pathlib

import jax
import numpy as np
import pytest

from ldm_jax.base import config as config_lib
from ldm_jax.base import defaults, shard
from ldm_jax.engine import step
from ldm_jax.runs import kinds

DEBUG = pathlib.Path(__file__).resolve().parents[2] / "configs" / "debug.py"
STEPS, BATCH, SIZE = 10, 16, 8
MESHES = {
    "one": dict(data=1),
    "data8": dict(data=8),
    "data2_fsdp4": dict(data=2, fsdp=4),
    "data2_fsdp2_tensor2": dict(data=2, fsdp=2, tensor=2),
    "data2_tensor4": dict(data=2, tensor=4),
    "data4_spatial2": dict(data=4, spatial=2),
    "data2_spatial4": dict(data=2, spatial=4),
    "data2_fsdp2_spatial2": dict(data=2, fsdp=2, spatial=2),
}


@pytest.fixture(scope="module")
def first_stage():
    config = config_lib.load(f"{DEBUG}:first_stage")
    config.data.size = SIZE
    config.model.mult = (1,)
    config.loss.disc_start = 0
    return config, kinds.of(config).model(config).stage()


@pytest.fixture(scope="module")
def second_stage():
    config = config_lib.load(f"{DEBUG}:ldm", {"first_stage": "identity"})
    config.data.size = SIZE
    config.model.update(mult=(1,), attention=())
    config.conditioners["class"].num_classes = 4
    return config, kinds.of(config).model(config).stage(
        {"first_stage": {}, "scale": np.float32(0.7)}
    )


def transformer(model):
    config = config_lib.load(f"{DEBUG}:ldm", {"first_stage": "identity"})
    config.data.size = SIZE
    config.unlock()
    config.model = model
    config.conditioners["class"].num_classes = 4
    return config, kinds.of(config).model(config).stage(
        {"first_stage": {}, "scale": np.float32(0.7)}
    )


@pytest.fixture(scope="module")
def dit():
    return transformer(defaults.dit(width=16, depth=2, heads=2, patch=2, cross_attention=True))


@pytest.fixture(scope="module")
def uvit():
    return transformer(defaults.uvit(width=16, depth=2, heads=2, patch=2))


def train(config, stage, mesh: str, accumulate: int) -> dict:
    """`{metric: [STEPS]}`."""
    sizes = MESHES[mesh]
    mesh = shard.make_mesh(**sizes, devices=jax.devices()[: math.prod(sizes.values())])
    optimizers = {player.name: dict(config.optim[player.name]) for player in stage.players}
    programs = step.programs(stage, optimizers, mesh=mesh, total=STEPS, accumulate=accumulate)
    state = programs.init(shard.random_key(0, mesh))
    for axis in ("fsdp", "tensor"):
        spread = [x for x in jax.tree.leaves(state) if axis in x.sharding.spec]
        assert len(spread) > 10 if axis in sizes else not spread, f"{axis} must bite"
    frozen = shard.put_replicated(stage.frozen, mesh)
    key = shard.random_key(1, mesh)
    history = []
    for now in range(STEPS):
        state, metrics = programs.step(state, frozen, shard.put_batch(batch(now), mesh), key)
        history.append(jax.device_get(metrics))
    return {name: [float(m[name]) for m in history] for name in history[0]}


def batch(now: int) -> dict:
    """Smooth images, another batch each step."""
    rng = np.random.default_rng(now)
    image = rng.uniform(-1, 1, (BATCH, 2, 2, 3)).repeat(SIZE // 2, 1).repeat(SIZE // 2, 2)
    image = np.clip(image + rng.normal(0, 0.05, image.shape), -1, 1).astype(np.float32)
    return {"image": image, "class": rng.integers(0, 4, BATCH).astype(np.int32)}


@pytest.fixture(scope="module")
def on_one_device(first_stage, second_stage, dit, uvit):
    """The references, each computed once: (stage, accumulate) -> result."""
    stages, known = {"first_stage": first_stage, "second_stage": second_stage}, {}
    stages |= {"dit": dit, "uvit": uvit}

    def result(name, accumulate):
        if (name, accumulate) not in known:
            known[name, accumulate] = train(*stages[name], "one", accumulate)
        return known[name, accumulate]

    return result


@pytest.mark.parametrize(
    ("name", "mesh", "accumulate"),
    [
        ("first_stage", "data2_fsdp2_spatial2", 2),
        ("second_stage", "data2_fsdp2_tensor2", 1),
        *(
            pytest.param(name, mesh, accumulate, marks=pytest.mark.slow)
            for name, mesh, accumulate in [
                ("dit", "data2_fsdp2_tensor2", 1),
                ("uvit", "data2_fsdp2_tensor2", 1),
                ("first_stage", "data8", 1),
                ("first_stage", "data8", 2),
                ("first_stage", "data2_fsdp4", 2),
                ("first_stage", "data2_fsdp4", 1),
                ("first_stage", "data2_fsdp2_tensor2", 2),
                ("first_stage", "data2_tensor4", 1),
                ("first_stage", "data4_spatial2", 1),
                ("first_stage", "data2_spatial4", 1),
                ("second_stage", "data8", 1),
                ("second_stage", "data2_fsdp4", 1),
                ("second_stage", "data2_fsdp4", 2),
                ("second_stage", "data2_tensor4", 1),
                ("second_stage", "data2_spatial4", 1),
                ("second_stage", "data2_fsdp2_spatial2", 1),
            ]
        ),
    ],
)
def test_many_devices_train_as_one(name, mesh, accumulate, request, on_one_device, monkeypatch):
    monkeypatch.setattr(shard, "MIN_SHARD_SIZE", 16)  # so that networks this small are sharded
    expected = on_one_device(name, accumulate)
    got = train(*request.getfixturevalue(name), mesh, accumulate)
    assert got.keys() == expected.keys()
    if name == "first_stage":
        assert {"discriminator/loss", "adaptive_weight", "adversarial"} <= got.keys()
        assert min(expected["adaptive_weight"]) > 0
        assert all(value > 0 for value in expected["discriminator/grad_norm"])
    for metric in (m for m in got if m.endswith("/loss")):
        np.testing.assert_allclose(got[metric], expected[metric], rtol=1e-5, err_msg=metric)
    for metric in set(got) - {m for m in got if m.endswith("/loss")}:
        np.testing.assert_allclose(
            got[metric], expected[metric], rtol=1e-3, atol=1e-5, err_msg=metric
        )
