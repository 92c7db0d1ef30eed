"""Estimates from compiling a config's programs for devices that need not be here; see `plan`."""

import dataclasses
import math
import pathlib
import re
import tempfile
from collections import Counter

import jax
from ml_collections import ConfigDict

from ldm_jax.base import errors, platforms, tree, watch
from ldm_jax.cost import hlo, programs, topologies
from ldm_jax.runs import codecs, kinds
from ldm_jax.runs import data as data_lib
from ldm_jax.runs import mesh as mesh_lib

GIB = 2**30
# Options of the compiler; the first name is that of jax before 0.12, the second one since.
EFFORTS = {
    "reduced": {"jax_exec_time_optimization_effort": -1.0, "jax_optimization_level": "O0"},
    "full": {"jax_exec_time_optimization_effort": 0.0, "jax_optimization_level": "UNKNOWN"},
}


@dataclasses.dataclass
class Estimator:
    """Compiles a config's programs for devices that need not be here.

    The fields beside the config are flags of `plan`, whose help explains them.

    Attributes:
      texts: {part: the text of its compiled program}, for the parts that are compiled so far.
    """

    config: ConfigDict
    topology: str
    target: str
    parts: tuple[str, ...]
    cached: bool
    effort: str
    largest: bool
    sample_batch: int
    memory_gib: float

    def __post_init__(self):
        first_stage = self.config.get("first_stage", "identity")  # which a first stage has not
        if self.cached and codecs.is_identity(first_stage):
            raise errors.UsageError(
                "--cached: the config trains on no latents of a first stage, so none can be kept; "
                "leave the flag out."
            )
        devices, self.chip = topologies.open_topology(self.topology, self.target)
        self._seconds = watch.stopwatch()
        key = next(key for key in EFFORTS[self.effort] if hasattr(jax.config, key))
        jax.config.update(key, EFFORTS[self.effort][key])
        platforms.cache_compilations(pathlib.Path(tempfile.gettempdir()) / "ldm_jax_plan_cache")
        self.config = data_lib.resolved(self.config)
        self.mesh = mesh_lib.make_mesh(self.config, devices)
        self.texts = {}

    def estimate(self, name: str) -> dict:
        """The summary of all parts. name: of the config."""
        summary = {
            "config": name,
            "topology": self.topology,
            "devices": self.mesh.size,
            "chip": self.chip.name,
            "mesh": dict(self.mesh.shape),
            "batch_size": self.config.batch_size,
            "effort": self.effort,
        }
        if "train" in self.parts:
            summary["train"] = self.training(self.config.batch_size)
        for part, program in self._without_gradients():
            summary[part] = self._compile(part, program)
        if self.largest and "train" in self.parts:
            summary["largest_batch"] = self.largest_batch(summary["train"])
        return summary | {"seconds": self._seconds()}

    def training(self, batch_size: int) -> dict:
        """The estimates of one training step of `batch_size` images."""
        config = self.config.copy_and_resolve_references()
        config.batch_size = batch_size
        part = self._compile("train", programs.training(config, self.mesh, cached=self.cached))
        return part | self._roofline(part, programs.training_flops(config, cached=self.cached))

    def _without_gradients(self):
        """(part, its program) of all parts asked for but the training step."""
        batch_size = self.sample_batch or self.mesh.size
        if "sample" in self.parts and kinds.of(self.config).draws:
            yield "sample", programs.sampling(self.config, self.mesh, batch_size)
        if {"encode", "decode"} & set(self.parts):
            for part, program in programs.codec(self.config, self.mesh, batch_size).items():
                if part in self.parts:
                    yield part, program

    def refuse_misfits(self, summary: dict):
        """Raises UsageError with advice if a part does not fit into a device's memory."""
        for part in self.parts:
            found = summary.get(part, {"fits": True})
            if found["fits"]:
                continue
            peak, limit = tree.size(found["memory"]["peak"]), tree.size(found["memory_limit"])
            advice = "take a smaller --sample_batch"
            if part == "train":
                advice = f"try {', or '.join(self._remedies(summary)) or 'a larger topology'}"
            raise errors.UsageError(f"{part} does not fit: {peak} of {limit} a device: {advice}.")

    def largest_batch(self, part: dict) -> int:
        """The largest batch whose training step fits; 0 if none does.

        Memory is extrapolated from two compilations as linear in the batch size, and the result is
        compiled too, to be sure.
        """
        unit = self.mesh.shape["data"] * self.mesh.shape["fsdp"] * self.config.accumulate
        limit, here, peak = part["memory_limit"], self.config.batch_size, part["memory"]["peak"]
        if not limit:
            return 0
        other = 2 * here if part["fits"] and 3 * peak < 2 * limit else here // 2
        other = max(unit, other // unit * unit)
        if other == here:
            return here if part["fits"] else 0
        second = self.training(other)
        if not (peak and second["memory"]["peak"]):
            return other if second["fits"] else 0
        slope = (second["memory"]["peak"] - peak) / (other - here)
        guess = int((here + (limit - peak) / max(slope, 1.0)) // unit * unit)
        while guess >= unit:
            if guess in (here, other) or self.training(guess)["fits"]:
                return guess
            guess = int(guess * 0.9 // unit * unit)
        return 0

    def _remedies(self, summary: dict) -> list[str]:
        """Flags that make a training step need less memory."""
        config, devices, remedies = self.config, self.mesh.size, []
        if batch := summary.get("largest_batch"):
            remedies += [f"--config.batch_size={batch}"]
        elif config.batch_size > devices:
            remedies += [f"--config.batch_size={max(devices, config.batch_size // 2)}"]
            remedies += [f"--config.accumulate={2 * config.accumulate}"]
        if not config.model.get("remat", True):
            remedies += ["--config.model.remat=True"]
        if self.mesh.shape["fsdp"] == 1 and devices > 1:
            remedies += [f"--config.mesh.fsdp={devices} --config.mesh.data=1"]
        return remedies

    def _compile(self, name, program) -> dict:
        seconds, memory = watch.stopwatch(), arguments(program)
        try:
            compiled = program.lower().compile()
        except jax.errors.JaxRuntimeError as e:
            if "RESOURCE_EXHAUSTED" not in str(e):
                raise errors.RunError(f"The compiler gave up: {str(e)[:300]}") from e
            peak, limit = exhausted(str(e), sum(memory.values()))
            return {
                "fits": False,
                "memory": memory | {"peak": peak},
                "memory_limit": self.memory_gib * GIB or limit or self.chip.memory,
                "compile_seconds": seconds(),
            }
        analysis, limit = compiled.memory_analysis(), self.memory_gib * GIB or self.chip.memory
        self.texts[name] = text = compiled.as_text()
        parsed, analysed = hlo.parse(text), compiled.cost_analysis() or {}
        loops = max(hlo.runs(parsed).values(), default=1) > 1
        held = analysis.argument_size_in_bytes
        memory["tiling"] = max(0, held - sum(memory.values()))  # TPUs pad the rows of arrays
        memory["temporaries"] = analysis.temp_size_in_bytes
        memory["outputs"] = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        memory["code"] = analysis.generated_code_size_in_bytes
        memory["peak"] = held + memory["temporaries"] + memory["outputs"] + memory["code"]
        return {
            "fits": not limit or memory["peak"] <= limit,
            "memory": memory,
            "memory_limit": limit,
            "compile_seconds": seconds(),
            # The compiler counts the bytes of a loop once: no count is better than a wrong one.
            "bytes_accessed": 0.0 if loops else analysed.get("bytes accessed", 0.0),
            **read(parsed, self.chip),
        }

    def _roofline(self, part: dict, flops: float) -> dict:
        """Lower bounds of a step's seconds, and the MFU if the largest bound is reached.

        The bytes of the memory bound are counted by the compiler, as if every fusion read all its
        operands from memory. Compilers for GPUs do not count them, nor are they known of programs
        with loops, such as layers that are scanned; then there is no MFU.
        """
        each, chip, found = flops / self.mesh.size, self.chip, {"flops": flops}
        if not chip.flops or "matrix_efficiency" not in part:
            return found
        bounds = {
            "matrix_seconds": each / chip.flops / (part["matrix_efficiency"] or 1.0),
            "collective_seconds": part["collective_bytes"] / chip.link,
        }
        if not part["bytes_accessed"]:
            return found | bounds
        bounds["memory_seconds"] = part["bytes_accessed"] / chip.bandwidth
        longest = max(bounds.values())
        found["images_per_second_estimate"] = self.config.batch_size / longest
        found["mfu_estimate"] = each / chip.flops / longest
        return found | bounds


def exhausted(message: str, held: float) -> tuple[float, float]:
    """(bytes that a device would need, bytes that it has), from XLA's message of missing memory.

    held: bytes of the arguments, which a message about temporaries leaves out. The second number is
    0 if the message does not tell.
    """
    units = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
    sizes = [float(n) * units[unit] for n, unit in re.findall(r"\b([\d.]+)([KMGT])\b", message)]
    if len(sizes) < 2:
        return held, 0.0
    return sizes[0] + (held if "temporaries" in message else 0.0), sizes[1]


def arguments(program) -> dict:
    """{argument of the program, or part of its state: bytes on each device}."""
    size = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    parts = dict(program.arguments)
    parts |= parts.pop("state", {})
    held = {name: sum(map(size, jax.tree.leaves(values))) for name, values in parts.items()}
    return {name: count for name, count in held.items() if count}


def read(parsed, chip) -> dict:
    """The collectives, matrix operations, copies and memory traffic of a compiled program."""
    found, kinds = hlo.collectives(parsed), {}
    for one in sorted(found, key=lambda collective: collective.kind):
        kind = kinds.setdefault(one.kind, {"count": 0, "bytes": 0, "overlapping": 0})
        kind["count"] += 1
        kind["bytes"] += one.nbytes
        kind["overlapping"] += one.overlaps
    moves, traffic = Counter(), hlo.traffic(parsed)
    for move in hlo.moves(parsed):
        moves[move.kind] += move.nbytes
    work = hlo.matrix_work(parsed, chip.matrix or 1)
    flops, padded = sum(m.flops for m in work), sum(m.padded for m in work)
    wide = sum(m.flops for m in work if m.dtype == "f32")
    return {
        "collectives": kinds,
        "collective_bytes": sum(one.nbytes for one in found),
        "matrix_efficiency": flops / padded if padded else 0.0,
        "float32_matrix_share": wide / (flops or 1.0),
        "moves": dict(moves),
        "largest_moves": _places(hlo.moves(parsed), 3),
        "traffic": sum(one.nbytes for one in traffic),
        "largest_traffic": _places(traffic, 10),
    }


def _places(found, most: int) -> dict[str, int]:
    """{place in the model: bytes} of those with the most; blocks of one kind are summed."""
    places = Counter()
    for one in found:
        places[re.sub(r"\d+", "*", one.where) or "no line of the model"] += one.nbytes
    return dict(places.most_common(most))
