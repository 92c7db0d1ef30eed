"""The official sampler's and diffusers' own numbers: trajectories, time grids, schedules."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import parity
import parity_samplers

PACKED = parity.ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def golden(tmp_path_factory):
    return parity.unpack(PACKED, tmp_path_factory.mktemp("golden"))


# The others run the network on settings that these have between them.
QUICK = ("compvis/plms_S10", "compvis/ddpm_T20_clip", "compvis/ddim_S10_eta0.5", "schedulers")
CASES = [
    pytest.param(name, marks=() if name.startswith((*QUICK, "tables")) else pytest.mark.slow)
    for name in parity_samplers.cases(PACKED)
]


@pytest.mark.parametrize("name", CASES)
def test_recorded_samplers_are_reproduced(golden, name):
    rows = parity_samplers.measure(golden, name)
    assert rows
    over = [row for row in rows if not row[2] <= row[3]]
    assert not over, over


def test_every_sampler_has_a_recorded_trajectory():
    recorded = set(parity_samplers.SCHEDULERS.values()) | {"dpmpp_2m_sde"}
    assert recorded == set(parity_samplers.samplers.SAMPLERS.names())
    names = " ".join(parity_samplers.cases(PACKED))
    for stem in ("ddim_sd", "ddpm_sd", "pndm_sd", "euler_sd", "euler_ancestral_sd", "heun_sd",
                 "dpmpp_2m_sd", "dpmpp_2m_sde_sd", "unipc_sd", "plms_S20", "lcm_sd"):  # fmt: skip
        assert stem in names
