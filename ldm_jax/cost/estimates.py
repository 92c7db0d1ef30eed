"""What a config's programs take of devices that are elsewhere, by their compiler; see `plan`."""

import dataclasses
import pathlib
import re
import tempfile
from collections import Counter

import jax

from ldm_jax.base import errors, platforms, tree, watch
from ldm_jax.cost import budget, hlo, programs, topologies
from ldm_jax.runs import data as data_lib
from ldm_jax.runs import kinds
from ldm_jax.runs import mesh as mesh_lib

GIB = 2**30
PARTS = ("train", "sample")
# Of the compiler, under the name of jax before 0.12 and since.
EFFORTS = {
    "reduced": {"jax_exec_time_optimization_effort": -1.0, "jax_optimization_level": "O0"},
    "full": {"jax_exec_time_optimization_effort": 0.0, "jax_optimization_level": "UNKNOWN"},
}


@dataclasses.dataclass(frozen=True)
class Target:
    """What to compile and for which devices: the flags of `plan`, which say what each means."""

    topology: str
    target: str = ""
    parts: tuple[str, ...] = PARTS
    effort: str = "reduced"
    largest: bool = False
    sample_batch: int = 0
    memory_gib: float = 0.0


def estimate(name: str, config, wanted: Target) -> tuple[dict, dict]:
    """(the summary, {part: text of its compiled program}). name: what the config is called."""
    devices, chip = topologies.open_topology(wanted.topology, wanted.target)
    seconds = watch.stopwatch()
    key = next(key for key in EFFORTS[wanted.effort] if hasattr(jax.config, key))
    jax.config.update(key, EFFORTS[wanted.effort][key])
    platforms.cache_compilations(pathlib.Path(tempfile.gettempdir()) / "ldm_jax_plan_cache")
    config = data_lib.resolved(config)
    mesh = mesh_lib.make_mesh(config, devices)
    estimator = Estimator(config, mesh, chip, wanted.memory_gib * GIB)
    summary = {
        "config": name,
        "topology": wanted.topology,
        "devices": len(devices),
        "chip": chip.name,
        "mesh": dict(mesh.shape),
        "batch_size": config.batch_size,
        "effort": wanted.effort,
    }
    if "train" in wanted.parts:
        summary["train"] = estimator.training(config.batch_size)
    if "sample" in wanted.parts and kinds.of(config).draws:
        summary["sample"] = estimator.sampling(wanted.sample_batch or len(devices))
    if wanted.largest and "train" in wanted.parts:
        summary["largest_batch"] = estimator.largest(summary["train"])
    return summary | {"seconds": seconds()}, estimator.texts


def refuse_misfits(config, summary: dict):
    """Raises UsageError, with advice, where a part does not fit into a device's memory."""
    for part in PARTS:
        if not summary.get(part, {}).get("fits", True):
            raise errors.UsageError(advice(config, summary, part))


def advice(config, summary, part) -> str:
    """What to do where memory does not suffice."""
    found = summary[part]
    peak, limit = found["memory"]["peak"], found["memory_limit"]
    text = f"{part} does not fit: {tree.size(peak)} of {tree.size(limit)} a device"
    if part == "sample":
        return f"{text}: take a smaller --sample_batch."
    remedies = []
    devices = summary["devices"]
    if summary.get("largest_batch"):
        remedies.append(f"--config.batch_size={summary['largest_batch']}")
    elif config.batch_size > devices:
        remedies.append(f"--config.batch_size={max(devices, config.batch_size // 2)}")
        remedies.append(f"--config.accumulate={2 * config.accumulate}")
    if not config.model.get("remat", True):
        remedies.append("--config.model.remat=True")
    if summary["mesh"]["fsdp"] == 1 and devices > 1:
        remedies.append(f"--config.mesh.fsdp={devices} --config.mesh.data=1")
    return f"{text}: try {', or '.join(remedies) or 'a larger topology'}."


class Estimator:
    """Compiles a config's programs for one mesh. limit: bytes of a device, 0 for the compiler's."""

    def __init__(self, config, mesh, chip, limit: float):
        self._config, self._mesh, self._chip, self._limit = config, mesh, chip, limit
        self.texts = {}

    def training(self, batch_size: int) -> dict:
        """What one training step of `batch_size` images takes."""
        config = self._config.copy_and_resolve_references()
        config.batch_size = batch_size
        part = self._compile("train", programs.training(config, self._mesh))
        flops = budget.training_flops(config, cached=False)
        return part | self._roofline(part, flops)

    def sampling(self, batch_size: int) -> dict:
        """What a batch of samples takes."""
        return self._compile("sample", programs.sampling(self._config, self._mesh, batch_size))

    def largest(self, part: dict) -> int:
        """Images of the largest batch whose training step fits; 0 where none does.

        Memory is taken as linear in the batch, by two compilations, and the answer is compiled.
        """
        unit = self._mesh.shape["data"] * self._mesh.shape["fsdp"] * self._config.accumulate
        limit, here = part["memory_limit"], self._config.batch_size
        if not limit:
            return 0
        other = 2 * here if part["fits"] and 3 * part["memory"]["peak"] < 2 * limit else here // 2
        other = max(unit, other // unit * unit)
        if other == here:
            return here if part["fits"] else 0
        twice = self.training(other)
        if not (part["memory"]["peak"] and twice["memory"]["peak"]):
            return other if twice["fits"] else 0
        slope = (twice["memory"]["peak"] - part["memory"]["peak"]) / (other - here)
        room = limit - part["memory"]["peak"]
        guess = int((here + room / max(slope, 1.0)) // unit * unit)
        while guess >= unit:
            if guess in (here, other) or self.training(guess)["fits"]:
                return guess
            guess = int(guess * 0.9 // unit * unit)
        return 0

    def _compile(self, name, program) -> dict:
        seconds = watch.stopwatch()
        memory = arguments(program)
        try:
            compiled = program.lower().compile()
        except jax.errors.JaxRuntimeError as e:
            if "RESOURCE_EXHAUSTED" not in str(e):
                raise errors.RunError(f"The compiler gave up: {str(e)[:300]}") from e
            peak, limit = exhausted(str(e), sum(memory.values()))
            return {
                "fits": False,
                "memory": memory | {"peak": peak},
                "memory_limit": self._limit or limit or self._chip.memory,
                "compile_seconds": seconds(),
            }
        analysis = compiled.memory_analysis()
        self.texts[name] = text = compiled.as_text()
        parsed = hlo.parse(text)
        held = analysis.argument_size_in_bytes
        memory["tiling"] = max(0, held - sum(memory.values()))  # devices store rows filled up
        memory["temporaries"] = analysis.temp_size_in_bytes
        memory["outputs"] = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        memory["code"] = analysis.generated_code_size_in_bytes
        total = held + memory["temporaries"] + memory["outputs"] + memory["code"]
        memory["peak"] = total
        limit = self._limit or self._chip.memory
        return {
            "fits": not limit or total <= limit,
            "memory": memory,
            "memory_limit": limit,
            "compile_seconds": seconds(),
            "bytes_accessed": (compiled.cost_analysis() or {}).get("bytes accessed", 0.0),
            **read(parsed, self._chip),
        }

    def _roofline(self, part: dict, flops: float) -> dict:
        """What bounds a step, in seconds, and the MFU that the longest of them leaves.

        Bytes are the compiler's count: every fusion reads all its operands from memory. Where it
        counts none, as for GPUs, there is no estimate of the whole.
        """
        each = flops / self._mesh.size
        found = {"flops": flops}
        chip = self._chip
        if chip.flops and "matrix_efficiency" in part:
            bounds = {
                "matrix_seconds": each / chip.flops / (part["matrix_efficiency"] or 1.0),
                "collective_seconds": part["collective_bytes"] / chip.link,
            }
            if not part["bytes_accessed"]:
                return found | bounds
            bounds["memory_seconds"] = part["bytes_accessed"] / chip.bandwidth
            longest = max(bounds.values())
            found |= bounds | {
                "images_per_second_estimate": self._config.batch_size / longest,
                "mfu_estimate": each / chip.flops / longest,
            }
        return found


def exhausted(message: str, held: float) -> tuple[float, float]:
    """(bytes that a device would need, bytes that it has), of what XLA says when it runs out.

    held: bytes of the arguments, which a message about temporaries leaves out. A limit that it does
    not say is 0.
    """
    units = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
    sizes = [float(n) * units[unit] for n, unit in re.findall(r"\b([\d.]+)([KMGT])\b", message)]
    if len(sizes) < 2:
        return held, 0.0
    return sizes[0] + (held if "temporaries" in message else 0.0), sizes[1]


def arguments(program) -> dict:
    """Bytes a device of what the program is given: weights, optimizer, average, the rest."""

    def held(values):
        total = 0
        for leaf in jax.tree.leaves(values):
            shape = leaf.sharding.shard_shape(leaf.shape)
            total += tree.nbytes(jax.ShapeDtypeStruct(shape, leaf.dtype))
        return total

    parts = dict(program.arguments)
    parts |= parts.pop("state", {})
    return {name: held(values) for name, values in parts.items() if held(values)}


def read(parsed, chip) -> dict:
    """What the compiled program says of its collectives, its matrix work and its copies."""
    found = hlo.collectives(parsed)
    kinds = {}
    for kind in sorted({c.kind for c in found}):
        of_kind = [c for c in found if c.kind == kind]
        kinds[kind] = {
            "count": len(of_kind),
            "bytes": sum(c.nbytes for c in of_kind),
            "overlapping": sum(c.overlaps for c in of_kind),
        }
    moves, places = Counter(), Counter()
    for move in hlo.moves(parsed):
        moves[move.kind] += move.nbytes
        # Blocks of one kind together: "down_*_block_*/norm_*".
        places[re.sub(r"\d+", "*", move.where) or "no line of the model"] += move.nbytes
    work = hlo.matrix_work(parsed, chip.matrix or 1)
    padded = sum(m.padded for m in work)
    wide = [m for m in work if m.dtype == "f32"]
    return {
        "collectives": kinds,
        "collective_bytes": sum(c.nbytes for c in found),
        "matrix_efficiency": sum(m.flops for m in work) / padded if padded else 0.0,
        "float32_matrix_share": sum(m.flops for m in wide) / (sum(m.flops for m in work) or 1.0),
        "moves": dict(moves),
        "largest_moves": dict(places.most_common(3)),
    }
