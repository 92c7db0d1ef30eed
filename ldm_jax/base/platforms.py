"""All flags of XLA that are set here, by platform, and why.

Flags in the user's own XLA_FLAGS are kept. docs/performance.md lists what was tried and left out.
"""

import inspect
import logging
import os
import pathlib
import sys
import threading

from ldm_jax.base import errors, remote

# Files by which a machine shows its accelerator, and the package with which JAX drives it.
HARDWARE = {
    "gpu": (("/dev/nvidia0",), ("jax_cuda12_plugin", "jax_cuda13_plugin")),
    "tpu": (("/dev/accel0", "/dev/vfio/0"), ("libtpu",)),
}

FLAGS = {
    # Collectives run beside the computation (JAX's "GPU performance tips"). No flag is needed to
    # keep autotuning results with the compiled programs, or for CUDA graphs.
    "gpu": ("--xla_gpu_enable_latency_hiding_scheduler=true",),
    # maxdiffusion's flags for libtpu, compiled for v5e, changed no collective.
    "tpu": (),
    # Fifteen settings were measured; none helped.
    "cpu": (),
}
# Bit-equal results in every run; CPUs and TPUs need no flag for that.
DETERMINISTIC = ("--xla_gpu_deterministic_ops=true",)


def here(environ=os.environ) -> str:
    """ "gpu", "tpu" or "cpu". JAX is not asked, as it would read XLA_FLAGS before they are set."""
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
    """Hides warnings of libraries that a user can do nothing about, and tracebacks of storage.

    Storage that fails has ALARMs of ours; what libraries say beside them gets one line each.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in ("absl", "orbax", "jax._src.xla_bridge", "gcsfs", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # futures that nobody asks any more
    if _in_one_line not in logging.getLogger("absl").filters:
        logging.getLogger("absl").addFilter(_in_one_line)
    threading.excepthook, sys.excepthook = _end_of_thread, _uncaught
    sys.unraisablehook = _unraisable


def _in_one_line(record) -> bool:
    """Takes the traceback from a line of a log."""
    record.msg, record.args = errors.reason(record.getMessage()), ()
    record.exc_info = record.exc_text = None
    return True


def _end_of_thread(args):
    """As Python's own hook; storage that failed in a library's thread is said in one line."""
    if isinstance(args.exc_value, OSError) and args.exc_value.errno:
        return logging.error("A thread ended: %s", errors.reason(args.exc_value))
    return threading.__excepthook__(args)


def _uncaught(kind, error, traceback):
    """As Python's own hook; without what tensorstore prints after each write that failed."""
    if not (kind is RuntimeError and str(error) == "Event loop is closed"):
        sys.__excepthook__(kind, error, traceback)


def _unraisable(found):
    """As Python's own hook; without the coroutines of a library's read that failed."""
    loop_has_ended = str(found.exc_value) == "Event loop is closed"
    if not (loop_has_ended or inspect.iscoroutine(found.object)):
        sys.__unraisablehook__(found)


def cache_compilations(directory):
    """Keeps compiled programs in `directory`, so that a restart does not compile them again."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(remote.place(directory)))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
