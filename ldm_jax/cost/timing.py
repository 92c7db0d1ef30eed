"""Times programs: after a warm-up, until the devices are done, with the median over repeats."""

import ctypes
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

LEAST = 0.3  # seconds that a repeat should last; a short program is called that much more often


def repeated(call, repeats: int) -> dict:
    """Times a call, () -> arrays that may not be ready yet.

    Returns {"seconds": of a call, the median over `repeats`, "seconds_min", "seconds_max",
    "repeats", "calls": in each repeat, "host_seconds": until a call returns on an idle device}.
    """
    jax.block_until_ready(call())
    begin = time.perf_counter()
    jax.block_until_ready(call())
    calls = max(1, min(100, round(LEAST / max(time.perf_counter() - begin, 1e-6))))
    rounds, host = [], []
    for _ in range(repeats):
        begin = time.perf_counter()
        last = call()
        host.append(time.perf_counter() - begin)
        for _ in range(calls - 1):
            last = call()
        jax.block_until_ready(last)
        rounds.append((time.perf_counter() - begin) / calls)
    return summary(rounds) | {"calls": calls, "host_seconds": statistics.median(host)}


def summary(seconds: list) -> dict:
    """Median and spread of repeats."""
    return {
        "seconds": statistics.median(seconds),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "repeats": len(seconds),
    }


def matmul_rate(dtype: str, repeats: int) -> dict:
    """The rate of a large square matrix product on one device, which MFU is a share of."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=(side, side)), dtype) for _ in range(2))
    product = jax.jit(jnp.matmul)
    seconds = repeated(lambda: product(a, b), repeats)["seconds"]
    rate = 2.0 * side**3 / seconds
    return {"side": side, "dtype": dtype, "flops_per_second": rate, "seconds": seconds}


def peak_memory(compiled) -> dict:
    """Bytes on a device: the compiler's plan and, where the allocator tells, the measured peak."""
    found = {}
    if (plan := compiled.memory_analysis()) is not None:
        own = plan.output_size_in_bytes - plan.alias_size_in_bytes
        found["planned_bytes"] = plan.argument_size_in_bytes + plan.temp_size_in_bytes + own
    statistic = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistic:
        found["peak_bytes"] = statistic["peak_bytes_in_use"]
    return found


def resident_growth(call) -> int | None:
    """Bytes by which this process is larger at the peak of a call than before it.

    Whatever the call allocates counts, by any library; None where the system cannot tell.
    """
    call()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, so that using it again is seen
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        before = _resident("VmRSS")
        call()
        return _resident("VmHWM") - before
    except (AttributeError, OSError):
        return None


def _resident(name: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
