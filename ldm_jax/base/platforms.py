"""Flags of XLA, all of them: what is set for which platform, and why.

Whatever the user's own XLA_FLAGS say stays. docs/performance.md tells what was tried and left out.
"""

import logging
import os
import pathlib

from ldm_jax.base import remote

# Files by which a machine shows its accelerator, and the package with which JAX drives it.
HARDWARE = {
    "gpu": (("/dev/nvidia0",), ("jax_cuda12_plugin", "jax_cuda13_plugin")),
    "tpu": (("/dev/accel0", "/dev/vfio/0"), ("libtpu",)),
}

FLAGS = {
    # Collectives run beside the computation (JAX's "GPU performance tips"). Autotuning is kept
    # with the compiled programs, and CUDA graphs are on, without a flag.
    "gpu": ("--xla_gpu_enable_latency_hiding_scheduler=true",),
    # The flags that maxdiffusion sets were tried by compiling for a v5e: no collective changed.
    "tpu": (),
    # Fifteen settings were measured; none helped.
    "cpu": (),
}
# The same bits in every run; CPUs and TPUs give them anyway.
DETERMINISTIC = ("--xla_gpu_deterministic_ops=true",)


def here(environ=os.environ) -> str:
    """ "gpu", "tpu" or "cpu", without asking JAX, which would read the flags."""
    for name, (files, _) in HARDWARE.items():
        wanted = environ.get("JAX_PLATFORMS", "").replace("cuda", "gpu") or name
        if name in wanted.split(",") and any(pathlib.Path(file).exists() for file in files):
            return name
    return "cpu"


def set_flags(flags: tuple = (), environ=os.environ):
    """Adds the platform's flags, or those given, to XLA_FLAGS; before anything touches a device."""
    given = environ.get("XLA_FLAGS", "").split()
    names = {flag.partition("=")[0] for flag in given}
    new = [flag for flag in flags or FLAGS[here(environ)] if flag.partition("=")[0] not in names]
    if new:
        environ["XLA_FLAGS"] = " ".join([*given, *new])


def quiet_libraries():
    """Keeps those warnings of libraries out of the log about which a user can do nothing."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in ("absl", "orbax", "jax._src.xla_bridge", "gcsfs"):
        logging.getLogger(name).setLevel(logging.ERROR)


def cache_compilations(directory):
    """Keeps compiled programs in a folder, so that a restarted process compiles nothing anew."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(remote.place(directory)))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
