"""Devices that a program can be compiled for without being here, and their peak performance.

    v5e:4x4, v5p:2x2x2, v6e:2x4    TPU slices by generation and shape; needs the package libtpu
    cuda:8                         GPUs of one host, as --target describes them
    cpu:8                          real CPU devices of this machine

The peaks are the manufacturers' figures: Google's as in "How to Scale Your Model" (Austin et al.
2025, ch. 2), NVIDIA's from its data sheets, for dense matrices.
"""

import contextlib
import importlib.util
import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from ldm_jax.base import disk, errors


class Chip(NamedTuple):
    """The peak performance of a device; 0 where it is not known.

    memory: bytes; bandwidth: of the memory, bytes a second; flops: bfloat16 operations a second;
    link: bytes a second to other devices; matrix: side of the matrix unit; dimensions: of a slice.
    """

    name: str
    memory: float = 0.0
    flops: float = 0.0
    bandwidth: float = 0.0
    link: float = 0.0
    matrix: int = 0
    dimensions: int = 0


TPUS = {
    "v5e": Chip("TPU v5e", 15.75 * 2**30, 1.97e14, 8.1e11, 9e10, 128, 2),
    "v5p": Chip("TPU v5p", 95 * 2**30, 4.59e14, 2.8e12, 2.7e11, 128, 3),
    "v6e": Chip("TPU v6e", 31.25 * 2**30, 9.20e14, 1.6e12, 1.8e11, 256, 2),
}
GPUS = {
    "A100": Chip("A100", 80e9, 3.12e14, 2.0e12, 3e11, 16),
    "H100": Chip("H100", 80e9, 9.89e14, 3.35e12, 4.5e11, 16),
    "H200": Chip("H200", 141e9, 9.89e14, 4.8e12, 4.5e11, 16),
    "B200": Chip("B200", 180e9, 2.25e15, 8.0e12, 9e11, 16),
}
PLUGINS = {"tpu": ("libtpu", "jax[tpu]"), "cuda": ("jax_plugins", "jax[cuda13]")}
TARGETS = "openxla/xla has such files in xla/backends/gpu/target_config/specs, e.g. h200.txtpb"


def open_topology(text: str, target: str = "") -> tuple[list, Chip]:
    """(devices, their kind). target: file that describes a GPU.

    Raises:
      UsageError: an unknown topology, or no compiler for it is installed.
    """
    kind, _, shape = text.partition(":")
    known = [*TPUS, "cuda", "cpu"]
    if kind not in known:
        raise errors.UsageError(
            f"--topology={text}: the first part must be one of {', '.join(known)}"
            f"{errors.nearest(kind, known)}"
        )
    if kind != "cuda" and target:
        raise errors.UsageError(f"--target={target} is for --topology=cuda:N: leave it out.")
    if kind in TPUS:
        return _tpu(TPUS[kind], kind, shape), TPUS[kind]
    if not shape.isdecimal() or int(shape) < 1:
        raise errors.UsageError(f"--topology={text}: give a number of devices, e.g. cpu:8.")
    return _cuda(int(shape), target) if kind == "cuda" else (_cpu(int(shape)), Chip("CPU"))


def _tpu(chip, kind, shape):
    sides = re.fullmatch(r"\d+(x\d+)*", shape) and [int(side) for side in shape.split("x")]
    if not sides or len(sides) != chip.dimensions or min(sides) < 1:
        example = "x".join(["2", "2", "1"][: chip.dimensions])
        raise errors.UsageError(
            f"--topology={kind}:{shape}: a slice of {kind} has {chip.dimensions} sides, e.g. "
            f"{kind}:{example}"
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # it would ask which cloud machine this is
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is used, so none is locked
    lone = {"chips_per_host_bounds": [1] * 3} if max(sides) == 1 else {}
    return _describe(f"{kind}:{shape}", "tpu", **lone)


def _cuda(count, target):
    if not target:
        raise errors.UsageError(f"--topology=cuda:{count} needs --target=FILE; {TARGETS}.")
    with errors.of(f"--target ({TARGETS})"):
        text = disk.read_text(target)
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")  # otherwise the plugin looks for a GPU
    jax.devices()  # which registers the plugin
    devices = _describe("cuda", "cuda", target_config=text, topology=f"1x1x{count}")
    named = next((chip for name, chip in GPUS.items() if name in text), Chip("GPU", matrix=16))
    return devices, named


def _cpu(count):
    jax.config.update("jax_platforms", "cpu")
    with contextlib.suppress(RuntimeError):  # JAX has started; the number cannot change any more
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise errors.UsageError(f"--topology=cpu:{count}: JAX runs with {len(devices)} already.")
    return devices[:count]


def _describe(name, platform, **options):
    package, extra = PLUGINS[platform]
    if importlib.util.find_spec(package) is None:
        raise errors.UsageError(
            f"--topology={name} needs {package}, which compiles for it: pip install '{extra}'"
        )
    try:
        return list(topologies.get_topology_desc(name, platform, **options).devices)
    except Exception as e:  # plugins raise exceptions of many kinds
        reason = " ".join(str(e).split())[:300]
        raise errors.UsageError(f"--topology={name} ({platform}): {reason}") from e
