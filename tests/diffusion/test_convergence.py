"""Samplers converge at the order that they promise, on data whose best denoiser is known."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import convergence

ORDERS = {
    "ddim": 1,
    "ddpm": 1,
    "euler": 1,
    "euler_ancestral": 1,
    "dpmpp_2m": 2,
    "dpmpp_2m_sde": 2,
    "heun": 2,
    "plms": 2,
    "unipc": 3,  # order 2, and 1 more by the corrector
}


@pytest.mark.parametrize("name", convergence.SOLVERS)
def test_samplers_converge_at_their_order(name):
    slope, errors = convergence.order(name)
    assert slope == pytest.approx(ORDERS[name], abs=0.3)
    assert errors[-1] < 1e-2


def test_second_order_pays_on_the_official_schedule():
    first = convergence.distance("ddim", "karras", 20)
    for name in ("dpmpp_2m", "unipc", "plms"):
        assert convergence.distance(name, "karras", 20) < 0.5 * first
