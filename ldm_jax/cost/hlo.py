"""Reads compiled programs as XLA prints them: collectives, matrix operations, copies.

What is in the body of a loop counts as often as the loop runs, see `runs`.
"""

import itertools
import math
import re
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
WORK = ("fusion", "convolution", "dot", "custom-call")
FLOW = ("while", "conditional", "call")  # what they do is done by the computations that they run
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all")
CUTS = ("slice", "dynamic-slice", "gather")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "f8e4m3fn": 1}
_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8}
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^{}]*\})?")
_LINE = re.compile(r"^\s+(?:ROOT )?%?(\S+) = (.+?) ([a-z][a-z0-9\-]*)\((.*)$")


class Shape(NamedTuple):
    """near: whether it lies in memory on the chip, such as a TPU's VMEM."""

    dtype: str
    dims: tuple[int, ...]
    near: bool = False

    @property
    def nbytes(self) -> int:
        return math.prod(self.dims) * _BYTES.get(self.dtype, 0)


class Instruction(NamedTuple):
    """One line of a program. shapes: of its results; operands: their names; text: the rest."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    text: str

    @property
    def nbytes(self) -> int:
        return sum(shape.nbytes for shape in self.shapes)


def parse(text: str) -> dict[str, list[Instruction]]:
    """{computation: its instructions in the order of the text, which is that of the schedule}."""
    found, lines = {}, []
    for line in text.splitlines():
        if line[:1] not in (" ", "", "}") and line.endswith("{"):
            name = re.match(r"(?:ENTRY )?%?([^\s(]+)", line)[1]
            lines = found.setdefault(name, [])
        elif match := _LINE.match(line):
            name, yielded, opcode, rest = match.groups()
            sides = lambda text: tuple(int(side) for side in text.split(",") if side)
            shapes = tuple(
                Shape(dtype, sides(dims), bool(re.search(r"S\([1-9]", layout)))
                for dtype, dims, layout in _SHAPE.findall(yielded)
            )
            operands = tuple(re.findall(r"%([^\s,)]+)", rest.split("), ", 1)[0]))
            lines.append(Instruction(name, opcode, shapes, operands, rest))
    return found


def runs(program: dict[str, list[Instruction]]) -> dict[str, int]:
    """How often each computation runs in one run of the program.

    The condition of a loop of JAX compares its counter with a constant, which is how often it runs;
    one of another kind counts as once.
    """
    callers = {}
    for name, lines in program.items():
        for line in lines:
            body = attribute(line, "body", r"%?([^\s,)]+)")
            bound = _bound(program.get(attribute(line, "condition", r"%?([^\s,)]+)"), ()))
            for callee, times in ((body, bound), (called(line), 1)):
                if callee in program:
                    callers.setdefault(callee, []).append((name, times))
    found = {}

    def count(name):
        if name not in found:
            each = [times * count(caller) for caller, times in callers.get(name, ())]
            found[name] = sum(each) or 1
        return found[name]

    return {name: count(name) for name in program}


def _bound(condition) -> int:
    bounds = [line.text for line in condition if line.opcode == "constant" and line.nbytes == 4]
    numbers = [int(text[1]) for text in map(re.compile(r"(\d+)\)").match, bounds) if text]
    return max([1, *numbers])


class Collective(NamedTuple):
    """kind: one of COLLECTIVES; nbytes: of a device's result; overlaps: with other computation."""

    kind: str
    nbytes: int
    overlaps: bool


def collectives(program: dict[str, list[Instruction]]) -> list[Collective]:
    """All collectives. One overlaps with what is scheduled between its start and its end."""
    found, times = [], runs(program)
    for name, lines in program.items():
        for i, line in enumerate(lines):
            kind = _kind(line, program)
            if kind is None or line.opcode.endswith("-done"):
                continue
            size, between = line.nbytes, []
            if line.opcode.endswith("-start"):
                # A start also returns its operands; its result is the largest of its shapes.
                size = max((shape.nbytes for shape in line.shapes), default=0)
                ends = (k for k in range(i + 1, len(lines)) if line.name in lines[k].operands)
                done = next((k for k in ends if lines[k].opcode.endswith("-done")), i)
                between = lines[i + 1 : done]
            overlaps = any(other.opcode in WORK for other in between)
            found += times[name] * [Collective(kind, size, overlaps)]
    return found


class Matrix(NamedTuple):
    """A product or a convolution.

    flops: multiplications and additions; padded: the same, with the padding that the matrix unit
    needs; dtype: of the operands.
    """

    name: str
    flops: float
    padded: float
    dtype: str


def matrix_work(program: dict[str, list[Instruction]], side: int) -> list[Matrix]:
    """Products and convolutions, on a matrix unit of `side` x `side` that takes rows by 8.

    A product of m x k by k x n is padded to multiples of 8, `side` and `side`. A convolution counts
    as one product for each tap of its window. If the window is as large as an image, as in the
    gradient of a kernel, it counts as one product whose k runs over the taps.
    """
    found, times_of = [], runs(program)
    for name, lines in program.items():
        shapes = {line.name: line.shapes[0] for line in lines if line.shapes}
        for line in lines:
            if line.opcode in ("convolution", "dot") and all(o in shapes for o in line.operands):
                a, b = (shapes[operand] for operand in line.operands[:2])
                product = _convolution if line.opcode == "convolution" else _dot
                m, k, n, times = product(line, a, b)
                fill = lambda size, unit: -(-size // unit) * unit
                padded = times * 2.0 * fill(m, 8) * fill(k, side) * fill(n, side)
                one = Matrix(line.name, times * 2.0 * m * k * n, padded, a.dtype)
                found += times_of[name] * [one]
    return found


class Move(NamedTuple):
    """A copy or a transpose. where: see `place`; "" for those that the compiler inserted."""

    kind: str
    where: str
    nbytes: int


def moves(program: dict[str, list[Instruction]]) -> list[Move]:
    """Copies and transposes that are not part of a fusion, so that they cost time of their own."""
    times = runs(program)
    return [
        Move(line.opcode, place(line), line.nbytes)
        for name, lines in program.items()
        for line in times[name] * lines
        if line.opcode in ("copy", "transpose") and "fused" not in name
    ]


class Traffic(NamedTuple):
    """Bytes that an instruction reads from and writes to a device's memory, in all its runs.

    where: see `place`.
    """

    name: str
    opcode: str
    where: str
    nbytes: int


def traffic(program: dict[str, list[Instruction]]) -> list[Traffic]:
    """The memory traffic of every instruction that is not part of a fusion.

    An operand counts whole, except where only a slice of it is read or written, as a loop does with
    stacked weights. What lies near, on the chip, does not count.
    """
    times, found, lines = runs(program), [], itertools.chain.from_iterable(program.values())
    parts = {called(line) for line in lines if line.opcode not in FLOW}
    for name in [name for name in program if name not in parts]:
        shapes = {line.name: line.shapes for line in program[name]}
        for line in program[name]:
            if line.opcode not in (*FREE, *FLOW) and not line.opcode.endswith("-done"):
                size = times[name] * _touched(line, shapes, program)
                found.append(Traffic(line.name, line.opcode, place(line), size))
    return found


def _touched(line, shapes, program) -> int:
    """Bytes that one run of an instruction reads and writes. shapes: of the operands, by name."""
    wholes = {i: _far(shapes.get(operand, ())) for i, operand in enumerate(line.operands)}
    if line.opcode.endswith("-start"):  # it returns its operands beside what it makes
        operands = [shape for operand in line.operands for shape in shapes.get(operand, ())]
        moved = line.nbytes - sum(shape.nbytes for shape in operands)
        read = sum(min(whole, moved) for whole in wholes.values())
        return read + max(0, _far(line.shapes) - _far(operands))
    inner = program.get(called(line), ()) if line.opcode == "fusion" else ()
    if inner:
        number = lambda parameter: int(parameter.text.partition(")")[0])
        given = {number(one): one.name for one in inner if one.opcode == "parameter"}
    else:
        inner, given = [line], dict(enumerate(line.operands))
    made = {one.name: one for one in inner}
    users = {}
    for one in inner:
        for operand in one.operands:
            users.setdefault(operand, []).append(one)

    def read(name, whole):
        sizes = []
        for user in users.get(name, ()):
            if user.opcode == "bitcast":
                sizes.append(read(user.name, whole))
            elif user.opcode in CUTS and user.operands[0] == name:
                sizes.append(user.nbytes)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                sizes.append(0)  # it is filled in place
            else:
                return whole
        return min(whole, sum(sizes))

    def written(one):
        if one.opcode in ("tuple", "bitcast"):
            return sum(written(made[o]) if o in made else 0 for o in one.operands)
        if one.opcode == "dynamic-update-slice":
            update = made.get(one.operands[1])
            return _far(update.shapes if update else shapes.get(one.operands[1], ()))
        return _far(one.shapes)

    size = sum(read(given[i], whole) for i, whole in wholes.items() if i in given)
    return size + min(_far(line.shapes), written(inner[-1]))


def _far(shapes) -> int:
    return sum(shape.nbytes for shape in shapes if not shape.near)


def _dot(line, a, b):
    """(m, k, n, number of products)."""
    dims = lambda key: [int(i) for i in attribute(line, key, r"\{([\d,]*)\}").split(",") if i]
    batch = math.prod(a.dims[i] for i in dims("lhs_batch_dims"))
    k = math.prod(a.dims[i] for i in dims("lhs_contracting_dims"))
    size = lambda shape: max(1, math.prod(shape.dims) // max(1, batch * k))
    return size(a), k, size(b), batch


def _convolution(line, a, b):
    labels = attribute(line, "dim_labels", r"([^\s,]+)")
    rhs, out = labels.partition("_")[2].split("->")
    k, n = b.dims[rhs.index("i")], b.dims[rhs.index("o")]
    m = math.prod(line.shapes[0].dims) // max(1, line.shapes[0].dims[out.index("f")])
    window = [size for size, label in zip(b.dims, rhs) if label.isdigit()]
    # Zeros that dilation inserts between pixels are skipped.
    dilated = attribute(line, "lhs_dilate", r"([\dx]+)") or "1"
    m = max(1, m // math.prod(map(int, dilated.split("x"))))
    groups = int(attribute(line, "batch_group_count", r"(\d+)") or 1)
    taps = math.prod(window)
    if max(window, default=1) > 7:
        return m, k * taps, n // groups, 1
    return m, k, max(1, n // groups), taps


def called(line: Instruction) -> str:
    """The computation that a fusion or a call runs, or ""."""
    return attribute(line, "calls", r"%?([^\s,)]+)") or attribute(line, "to_apply", r"%?([^\s,)]+)")


def attribute(line: Instruction, key: str, pattern: str) -> str:
    """The value after `key=` in an instruction's text (the pattern's first group), or ""."""
    match = re.search(rf"\b{key}={pattern}", line.text)
    return match[1] if match else ""


def place(line: Instruction) -> str:
    """The place in the model that an operation comes from, as JAX noted it, or ""."""
    return "/".join(attribute(line, "op_name", r'"([^"]*)"').split("/")[-4:])


def _kind(line, program):
    """The kind of collective that a line is, or that the computation it calls holds, or None."""
    name = line.opcode.removesuffix("-start").removesuffix("-done")
    if name in COLLECTIVES:
        return name
    if name == "async" or (name == "fusion" and "async_collective" in line.text):
        inside = {inner.opcode for inner in program.get(called(line), ())}
        return next((kind for kind in COLLECTIVES if kind in inside), None)
    return None
