"""What a config's programs take on the devices that are here; see `bench`."""

import collections
import dataclasses
import functools
import json
import os
import pathlib
import tempfile
import time

import jax

from ldm_jax.base import errors, platforms, shard, tree, watch
from ldm_jax.cost import baseline, convolutions, flops, programs, reports, timing, traces
from ldm_jax.engine.checkpoint import Checkpoints
from ldm_jax.runs import data as data_lib
from ldm_jax.runs import kinds
from ldm_jax.runs import mesh as mesh_lib

DATA_SECONDS = 3.0
USUAL = ("train", "sample", "encode", "decode", "data", "checkpoint")
PARTS = (*USUAL, "dispatch", "convolutions")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What to time: the flags of `bench`, which say what each field means."""

    parts: tuple[str, ...] = USUAL
    batch_size: int = 0
    images: bool = False
    steps: int | None = None
    guidance: float | None = None
    repeats: int = 5
    against: str = ""
    profile: str = ""


def measure(name: str, config, wanted: Wanted) -> dict:
    """Times the parts and prints each; the summary. name: what the config is called."""
    with config.unlocked():
        config.batch_size = wanted.batch_size or config.batch_size
        given = {"steps": wanted.steps, "guidance": wanted.guidance}
        if kinds.of(config).draws:
            config.sample.update({k: v for k, v in given.items() if v is not None})
    config = data_lib.resolved(config)
    mesh = mesh_lib.make_mesh(config)
    other = baseline.open_baseline(config) if wanted.against else None
    pairs = other.pairs() if other else {}
    on_cpu = jax.devices()[0].platform == "cpu"
    summary = {
        "config": name,
        "batch_size": config.batch_size,
        "dtype": config.dtype,
        "machine": _machine(),
        "matmul": timing.matmul_rate(config.dtype if on_cpu else "bfloat16", wanted.repeats),
    }
    rate = summary["matmul"]["flops_per_second"] * mesh.size
    with tempfile.TemporaryDirectory() as folder:
        platforms.cache_compilations(pathlib.Path(folder) / "cache")
        how = dict(cached=not wanted.images, profile=wanted.profile)
        benchmark = Benchmark(config, mesh, rate, wanted.repeats, **how)
        for part in wanted.parts:
            if found := getattr(benchmark, part)():
                summary[part] = found
                print(*reports.of_part(part, found), sep="\n", flush=True)
        if other:
            summary["against"] = benchmark.against(other, pairs)
            print(*reports.of_pairs(summary["against"]), sep="\n", flush=True)
    return summary


def _machine() -> dict:
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def compare(files, tolerance: float):
    """Raises RunError where a part of the second file is more than `tolerance` times slower."""
    if len(files) != 2:
        raise errors.UsageError("--compare wants two files: --compare=old.json,new.json")
    old, new = (_read(file) for file in files)
    parts = [part for part in PARTS if "seconds" in old.get(part, {}) and part in new]
    if not parts:
        raise errors.UsageError(f"{files[0]} and {files[1]} have no timed part in common.")
    slower = []
    for part in parts:
        ratio = new[part]["seconds"] / old[part]["seconds"]
        print(f"{part:10}  {ratio:.3f} times the seconds")
        slower += [part] if ratio > tolerance else []
    if old["machine"] != new["machine"] or old["batch_size"] != new["batch_size"]:
        print("note: machines, versions or batches differ")
    if slower:
        raise errors.RunError(f"more than {tolerance} times slower: {', '.join(slower)}")


def _read(file) -> dict:
    try:
        found = json.loads(pathlib.Path(file).read_text())
        return found if "machine" in found else found["not a benchmark"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise errors.UsageError(f"{file} is no file of bench --json ({e!r}).") from e


class Benchmark:
    """One config's parts on one mesh. Every method returns what it measured, {} where nothing is.

    rate: operations a second of all devices at a large product; cached: a second stage trains on
    cached latents; profile: folder for a trace of the training step.
    """

    def __init__(self, config, mesh, rate: float, repeats: int, cached: bool, profile=""):
        self._config, self._mesh, self._rate = config, mesh, rate
        self._repeats, self._cached, self._profile = repeats, cached, profile

    def train(self) -> dict:
        """A training step."""
        program = programs.training(self._config, self._mesh, cached=self._cached)
        compiled, clocks = self._compile(program)
        state, *rest = programs.fill(program)

        def step():
            nonlocal state
            state, metrics = compiled(state, *rest)
            return metrics

        found = self._clock(step, clocks, compiled, self._config.batch_size)
        if self._profile:
            traces.record(step, self._profile)
            found["costliest"] = traces.costliest(self._profile, compiled.as_text())
        return found | self._efficiency(self.training_flops(), found)

    def sample(self) -> dict:
        """A batch of samples by the config's sampler, decoded."""
        if not kinds.of(self._config).draws:
            return {}
        program = programs.sampling(self._config, self._mesh, self._config.batch_size)
        compiled, clocks = self._compile(program)
        call = functools.partial(compiled, *programs.fill(program))
        found = self._clock(call, clocks, compiled, self._config.batch_size)
        work = flops.count(program.function, *program.arguments.values())
        found |= self._efficiency(work, found)
        return found | {key: self._config.sample[key] for key in ("sampler", "steps", "guidance")}

    def encode(self) -> dict:
        """Images to the first stage's moments."""
        return self._codec("encode")

    def decode(self) -> dict:
        """Latents to images."""
        return self._codec("decode")

    def data(self) -> dict:
        """Batches as training reads them, and the work of a core for an image."""
        config = self._config
        try:
            source = data_lib.open_source(config.data)
            seconds, work = self._read(config, source)
        except errors.UsageError as e:
            return {"left_out": str(e)}
        if config.data.workers:  # whose work this process cannot see
            config = config.copy_and_resolve_references()
            config.data.workers = 0
            work = self._read(config, source)[1]
        return {
            "seconds": seconds,
            "images_per_second": config.batch_size / seconds,
            "core_seconds_per_image": work / config.batch_size,
            "workers": self._config.data.workers,
            "threads": config.data.threads,
        }

    def _read(self, config, source) -> tuple[float, float]:
        """Seconds a batch, and of this process's cores."""
        share, cache = dict(host=0, hosts=1), data_lib.open_cache(config, source)
        data = data_lib.make(config, source, ("image",), share, cache)
        with data.train(0) as batches:
            next(batches)
            begin, work, count = time.perf_counter(), time.process_time(), 0
            while count < 2 or time.perf_counter() - begin < DATA_SECONDS:
                next(batches)
                count += 1
            return (time.perf_counter() - begin) / count, (time.process_time() - work) / count

    def checkpoint(self) -> dict:
        """Saving the state of training, and reading it back."""
        program = programs.training(self._config, self._mesh, cached=self._cached)
        [state, *_] = programs.fill(program)
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = Checkpoints(folder)
            try:
                begin = time.perf_counter()
                checkpoints.save(1, state, {})
                held = time.perf_counter() - begin
                checkpoints.wait()
                seconds = time.perf_counter() - begin
                begin = time.perf_counter()
                jax.block_until_ready(checkpoints.restore(program.arguments["state"])[0])
                restored = time.perf_counter() - begin
            finally:
                checkpoints.close()
        size = tree.nbytes(state)
        return {
            "seconds": seconds,
            "held_up_seconds": held,
            "restore_seconds": restored,
            "bytes": size,
            "bytes_per_second": size / seconds,
        }

    def convolutions(self) -> dict:
        """Each convolution of the network by itself, with both gradients, on one device."""
        config = self._config.copy_and_resolve_references()
        config.batch_size //= self._mesh.size
        if one := kinds.of(config).forward(config):
            passes = [one]
        else:
            found = programs.codec(config, self._mesh, config.batch_size).values()
            passes = [(program.function, program.arguments.values()) for program in found]
        counted = collections.Counter()
        for function, arguments in passes:
            counted.update(convolutions.find(function, *arguments))
        clock = convolutions.clock(counted, self._repeats)
        return clock | {"mfu": clock["flops_per_second"] * self._mesh.size / self._rate}

    def dispatch(self) -> dict:
        """The host's work for a training step: as many arrays, to a program that does nothing."""
        whole = shard.replicated(self._mesh)
        empty = lambda leaf: jax.ShapeDtypeStruct((), leaf.dtype, sharding=whole)
        given = programs.training(self._config, self._mesh, cached=self._cached).arguments
        given = {name: jax.tree.map(empty, values) for name, values in given.items()}
        nothing = jax.jit(lambda state, *_: state, donate_argnums=0)
        program = programs.Program(nothing, given)
        state, *rest = programs.fill(program)
        compiled = program.lower().compile()
        seconds = []
        for _ in range(20 * self._repeats):
            begin = time.perf_counter()
            state = compiled(state, *rest)
            seconds.append(time.perf_counter() - begin)
            jax.block_until_ready(state)
        return timing.summary(seconds) | {"arrays": len(jax.tree.leaves(given))}

    def against(self, other, pairs: dict) -> dict:
        """Both clocks of the pairs of a baseline.Baseline, in turns."""
        found = {}
        for name, (ours, theirs, difference) in pairs.items():
            own, clock = baseline.clock_both(ours, theirs, other.wait, self._repeats)
            found[name] = own | {
                "baseline": other.name,
                "baseline_seconds": clock["seconds"],
                "baseline_seconds_min": clock["seconds_min"],
                "baseline_seconds_max": clock["seconds_max"],
                "ratio": clock["seconds"] / own["seconds"],
                "difference": difference,
            }
        return found

    def training_flops(self) -> float:
        """The model's work of a step: three times the forward pass, nothing computed again.

        Of a first stage, whose players share passes: the products and convolutions of its step.
        """
        config = self._config.copy_and_resolve_references()
        config.accumulate = 1
        if "remat" in config.model:
            config.model.remat = False
        if one := kinds.of(config).forward(config):
            return 3 * flops.count(one[0], *one[1])
        program = programs.training(config, self._mesh, cached=True)
        return flops.count(program.function, *program.arguments.values())

    def _codec(self, name) -> dict:
        found = programs.codec(self._config, self._mesh, self._config.batch_size)
        if name not in found:
            return {}
        program = found[name]
        compiled, clocks = self._compile(program)
        call = functools.partial(compiled, *programs.fill(program))
        clock = self._clock(call, clocks, compiled, self._config.batch_size)
        work = flops.count(program.function, *program.arguments.values())
        return clock | self._efficiency(work, clock)

    def _compile(self, program):
        """The executable, and how long it takes to make it from nothing and from the cache.

        Both begin with tracing, which no cache keeps.
        """
        seconds = watch.stopwatch()
        lowered = program.lower()
        traced, compiled = seconds(), lowered.compile()
        clocks = {"trace_seconds": traced, "compile_seconds": seconds()}
        jax.clear_caches()
        seconds = watch.stopwatch()
        compiled = program.lower().compile()
        return compiled, clocks | {"compile_again_seconds": seconds()}

    def _clock(self, call, clocks, compiled, images) -> dict:
        found = timing.repeated(call, self._repeats)
        found["images_per_second"] = images / found["seconds"]
        return found | clocks | timing.peak_memory(compiled)

    def _efficiency(self, work: float, found: dict) -> dict:
        rate = work / found["seconds"]
        return {"flops": work, "flops_per_second": rate, "mfu": rate / self._rate}
