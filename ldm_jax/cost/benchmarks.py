"""Measures the programs of a config on this machine's devices; see `bench`."""

import collections
import contextlib
import dataclasses
import functools
import os
import pathlib
import tempfile
import time

import jax
from ml_collections import ConfigDict

from ldm_jax.base import disk, errors, platforms, shard, tree, values, watch
from ldm_jax.base import record as record_lib
from ldm_jax.cost import (
    baseline,
    convolutions,
    flops,
    latency,
    programs,
    readers,
    reports,
    timing,
    traces,
)
from ldm_jax.engine.checkpoint import Checkpoints
from ldm_jax.runs import codecs, kinds
from ldm_jax.runs import data as data_lib
from ldm_jax.runs import mesh as mesh_lib

PARTS = ("train", "sample", "encode", "decode", "data", "checkpoint")
PARTS += ("dispatch", "convolutions", "latency")
_SECONDS = values.Number(above=0)
DATA_SECONDS = 3.0


@dataclasses.dataclass
class Benchmark:
    """A benchmark of a config on this machine's devices; the other fields are flags of `bench`.

    Every part is a method of the same name that returns its measurements, or {} where the config
    has no such part.
    """

    config: ConfigDict
    parts: tuple[str, ...] = PARTS
    batch_size: int = 0
    images: bool = False
    steps: int | None = None
    guidance: float | None = None
    repeats: int = 5
    against: str = ""
    decoder: str = ""
    profile: str = ""

    def __post_init__(self):
        given = {"steps": self.steps, "guidance": self.guidance}
        given = {name: value for name, value in given.items() if value is not None}
        kind = kinds.of(self.config)
        if given and not kind.draws:
            flags = " and ".join(f"--{name}" for name in given)
            raise errors.UsageError(f"{flags}: {kind.title} draws no samples; leave them out.")
        if self.decoder and "latency" not in self.parts:
            raise errors.UsageError("--decoder is timed by one part alone: --parts=latency.")
        with self.config.unlocked():
            self.config.batch_size = self.batch_size or self.config.batch_size
            if given:
                self.config.sample.update(given)
        self.config = data_lib.resolved(self.config)
        self.mesh = mesh_lib.make_mesh(self.config)

    def measure(self, name: str) -> dict:
        """Times the parts, prints each and returns the summary. name: of the config."""
        config = self.config
        compared = set(self.parts) & set(baseline.PARTS) if self.against else ()
        other = baseline.Baseline(config, compared) if compared else None
        on_cpu = jax.devices()[0].platform == "cpu"
        self.matmul = timing.matmul_rate(config.dtype if on_cpu else "bfloat16", self.repeats)
        summary = {
            "config": name,
            "batch_size": config.batch_size,
            "dtype": config.dtype,
            "machine": {
                "device": jax.devices()[0].device_kind,
                "devices": jax.device_count(),
                "cores": os.cpu_count(),
                "jax": jax.__version__,
                "xla_flags": os.environ.get("XLA_FLAGS", ""),
            },
            "matmul": self.matmul,
        }
        with tempfile.TemporaryDirectory() as folder:
            platforms.cache_compilations(pathlib.Path(folder) / "cache")
            for part in self.parts:
                if found := getattr(self, part)():
                    summary[part] = found
                    print(*reports.of_part(part, found), sep="\n", flush=True)
            if other:
                summary["against"] = other.clock(self.repeats)
                print(*reports.of_pairs(summary["against"]), sep="\n", flush=True)
        return summary

    def train(self) -> dict:
        """A training step."""
        program = self._training()
        compiled, clocks = self._compile(program)
        state, *rest = programs.fill(program)

        def step():
            nonlocal state
            state, metrics = compiled(state, *rest)
            return metrics

        found = self._clock(step, clocks, compiled, self.training_flops())
        if self.profile:
            traces.record(step, self.profile)
            found["costliest"] = traces.costliest(self.profile, compiled.as_text())
        return found

    def sample(self) -> dict:
        """Drawing a batch of samples with the config's sampler, and decoding it."""
        if not kinds.of(self.config).draws:
            return {}
        found = self._call(programs.sampling(self.config, self.mesh, self.config.batch_size))
        return found | {key: self.config.sample[key] for key in ("sampler", "steps", "guidance")}

    def _codec(self, name: str) -> dict:
        """Encoding images to the moments of the first stage's posterior, or decoding latents."""
        found = programs.codec(self.config, self.mesh, self.config.batch_size)
        return self._call(found[name]) if name in found else {}

    encode = functools.partialmethod(_codec, "encode")
    decode = functools.partialmethod(_codec, "decode")

    def data(self) -> dict:
        """Reading batches as training does, and the CPU time that an image takes."""
        config = self.config.copy_and_resolve_references()
        try:
            seconds, work = self._read(config)
            if config.data.workers:  # this process cannot measure the CPU time of others
                config.data.workers = 0
                _, work = self._read(config)
        except errors.UsageError as e:
            return {"left_out": str(e)}
        found = {
            "seconds": seconds,
            "images_per_second": config.batch_size / seconds,
            "core_seconds_per_image": work / config.batch_size,
            "workers": self.config.data.workers,
            "threads": config.data.threads,
        }
        others = readers.measure(config, DATA_SECONDS) if self.against else {}
        return found | ({"readers": others} if others else {})

    def checkpoint(self) -> dict:
        """Saving the state of training, and reading it back."""
        program = self._training()
        state, *_ = programs.fill(program)
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            checkpoints = stack.enter_context(contextlib.closing(Checkpoints(folder)))
            saving = watch.stopwatch()
            checkpoints.save(1, state, {})
            held = saving()
            checkpoints.wait()
            seconds, reading = saving(), watch.stopwatch()
            jax.block_until_ready(checkpoints.restore(program.arguments["state"])[0])
            restored = reading()
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
        config = self.config.copy_and_resolve_references()
        config.batch_size //= self.mesh.size
        if one := kinds.of(config).forward(config):
            counted = convolutions.find(one[0], *one[1])
        else:
            counted = collections.Counter()
            for program in programs.codec(config, self.mesh, config.batch_size).values():
                counted += convolutions.find(program.function, *program.arguments.values())
        clock = convolutions.clock(counted, self.repeats)
        return clock | {"mfu": clock["flops_per_second"] / self.matmul["flops_per_second"]}

    def dispatch(self) -> dict:
        """The host's work for a step: passing as many arrays to a program that does nothing."""
        whole = shard.replicated(self.mesh)
        empty = lambda leaf: jax.ShapeDtypeStruct((), leaf.dtype, sharding=whole)
        given = jax.tree.map(empty, self._training().arguments)
        program = programs.Program(jax.jit(lambda state, *_: state, donate_argnums=0), given)
        state, *rest = programs.fill(program)
        compiled = program.lower().compile()
        seconds = []
        for _ in range(20 * self.repeats):
            begin = time.perf_counter()
            state = compiled(state, *rest)
            seconds.append(time.perf_counter() - begin)
            jax.block_until_ready(state)
        return timing.summary(seconds) | {"arrays": len(jax.tree.leaves(given))}

    def latency(self) -> dict:
        """A call of the denoiser, a decoding and a GAN's generator, for batches of 1, 16 and 64."""
        if not kinds.of(self.config).draws or codecs.is_identity(self.config.first_stage):
            return {"left_out": "only a second stage with a first one draws in calls and decodes"}
        other = record_lib.read(self.decoder) if self.decoder else None
        return latency.measure(self.config, self.mesh, self.repeats, other)

    def training_flops(self) -> float:
        """The model's own operations in a training step: three times those of its forward pass.

        The networks of a first stage share passes, so the operations of its whole step count,
        without rematerialisation.
        """
        config = self.config.copy_and_resolve_references()
        config.accumulate = 1
        if "remat" in config.model:
            config.model.remat = False
        if one := kinds.of(config).forward(config):
            return 3 * flops.count(one[0], *one[1])
        return programs.training(config, self.mesh, cached=True).flops()

    def _training(self) -> programs.Program:
        return programs.training(self.config, self.mesh, cached=not self.images)

    def _read(self, config) -> tuple[float, float]:
        """Seconds of wall time and of this process's CPU time for a batch."""
        share, source = dict(host=0, hosts=1), data_lib.open_source(config.data)
        cache = kinds.of(config).open_cache(config, source)
        with data_lib.make(config, source, ("image",), share, cache).train(0) as batches:
            next(batches)
            begin, work, count = time.perf_counter(), time.process_time(), 0
            while count < 2 or time.perf_counter() - begin < DATA_SECONDS:
                next(batches)
                count += 1
            return (time.perf_counter() - begin) / count, (time.process_time() - work) / count

    def _call(self, program: programs.Program) -> dict:
        """The measurements of a program that does not donate its arguments."""
        compiled, clocks = self._compile(program)
        call = functools.partial(compiled, *programs.fill(program))
        return self._clock(call, clocks, compiled, program.flops())

    def _compile(self, program):
        """The executable, and the seconds of compiling it without the cache and with it.

        Both include tracing, which is never cached.
        """
        seconds = watch.stopwatch()
        lowered = program.lower()
        traced, compiled = seconds(), lowered.compile()
        clocks = {"trace_seconds": traced, "compile_seconds": seconds()}
        jax.clear_caches()
        seconds = watch.stopwatch()
        compiled = program.lower().compile()
        return compiled, clocks | {"compile_again_seconds": seconds()}

    def _clock(self, call, clocks: dict, compiled, work: float) -> dict:
        found = timing.repeated(call, self.repeats)
        rate, best = work / found["seconds"], self.matmul["flops_per_second"] * self.mesh.size
        found["images_per_second"] = self.config.batch_size / found["seconds"]
        found |= clocks | timing.peak_memory(compiled)
        return found | {"flops": work, "flops_per_second": rate, "mfu": rate / best}


def compare(files, tolerance: float):
    """Raises RunError where a part of the second file is more than `tolerance` times slower."""
    if len(files) != 2:
        raise errors.UsageError("--compare wants two files: --compare=old.json,new.json")
    old, new = map(_read, files)
    timed = lambda part: all("seconds" in found.get(part, {}) for found in (old, new))
    parts = {part: new[part]["seconds"] / old[part]["seconds"] for part in filter(timed, PARTS)}
    if not parts:
        raise errors.UsageError(f"{files[0]} and {files[1]} have no timed part in common.")
    for part, ratio in parts.items():
        print(f"{part:10}  {ratio:.3f} times the seconds")
    if any(old[key] != new[key] for key in ("machine", "batch_size")):
        print("note: machines, versions or batches differ")
    if slower := [part for part, ratio in parts.items() if ratio > tolerance]:
        raise errors.RunError(f"more than {tolerance} times slower: {', '.join(slower)}")


def _read(file) -> dict:
    found = disk.read_json(file)
    for key in ("machine", "batch_size"):
        if key not in found:
            raise errors.UsageError(f"{file} is no file of bench --json: it has no {key!r}.")
    for part in set(PARTS) & found.keys():
        values.check(f"{file}: {part}", found[part], values.Mapping(None))
        if "seconds" in found[part]:
            values.check(f"{file}: {part}.seconds", found[part]["seconds"], _SECONDS)
    return found
