"""What the recipes' programs cost, in numbers without noise: tests/golden/costs.csv.

    python tests/costs.py                          # renews every row
    python tests/costs.py --only=quickstart,kl_f4  # those of some recipes, all their variants
    python tests/costs.py --targets=traced         # without those that are compiled
    python tests/costs.py --targets=v5e:2x2        # those of a TPU: two minutes of one core each

A row is one program for one target. `traced` is the program as it was written, before a compiler
sees it, on one device: its numbers depend on no machine. The other targets are topologies of `plan`
that the program is compiled for; one of a TPU, such as v5e:2x2, needs libtpu. `recipe` is a config
with the keys that are set on top of it; second stages train on cached latents. Numbers compare only
under the versions in `compiler`.

  flops        of products and convolutions: of the whole program when traced, else of a device
  bytes        that operations read and write; when traced, as if nothing was fused
  peak         bytes on a device: arguments, temporaries, outputs and code
  collectives  between devices
  copies       and transposes that are not part of a fusion; copied: the bytes that they write
  float32      products and convolutions in float32; left out where all are: when traced, of recipes
               in float32, and on CPUs
"""

import csv
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import sys
import tempfile

# As in tests/conftest.py. Only LLVM heeds the flag, and no figure depends on it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "--xla_backend_optimization_level=0")

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
from calling import call

from ldm_jax import cli, plan
from ldm_jax.base import config as config_lib
from ldm_jax.base import shard
from ldm_jax.cost import flops, hlo, programs, reports
from ldm_jax.runs import data as data_lib
from ldm_jax.runs import kinds

TABLE = pathlib.Path(__file__).resolve().parent / "golden" / "costs.csv"
MOST = 1.02  # times its old value that a figure may be

SMALL = ("debug:first_stage", "debug:ldm first_stage=configs/debug.py:first_stage")
QUICKSTART = (
    "quickstart:first_stage",
    "quickstart:ldm first_stage=configs/quickstart.py:first_stage",
)
TRACED = (
    *SMALL,
    *QUICKSTART,
    *("kl_f4", "vq_f4", "ldm_lsun_churches", "ldm_celebahq", "ldm_imagenet_f4"),
    *("dit:xl2 first_stage=configs/sd_v1_vae.py", "sd_v1"),
    "ldm_text2img_1b45",
)
# As many tokens as the kernel for TPUs wants.
KERNEL = "data.size=64 dtype=bfloat16 model.attention_kernel=pallas"
TPU = (
    *QUICKSTART,
    f"quickstart:first_stage {KERNEL} model.mid_attention=True",
    f"dit:tiny first_stage=configs/quickstart.py:first_stage {KERNEL}",
)
PIXELS = "debug:ldm first_stage=identity model.mult=(1,) model.attention=()"
# {(target, recipe): flags of plan}
JOBS = {("traced", recipe): () for recipe in TRACED} | {
    ("cpu:8", PIXELS): ("--parts=train,sample",),
    ("cpu:8", "debug:first_stage"): ("--parts=train,encode,decode",),
}
JOBS |= {("v5e:2x2", recipe): ("--parts=train",) for recipe in TPU}
TARGETS = tuple(dict.fromkeys(target for target, _ in JOBS))
FILES = tuple(dict.fromkeys(re.split("[: ]", recipe)[0] for _, recipe in JOBS))
FLAGS = dict(
    only=cli.Listed("Recipes whose rows to renew, without their variants.", FILES, of=FILES),
    targets=cli.Listed("Targets whose rows to renew.", TARGETS, of=TARGETS),
)


@dataclasses.dataclass
class Cost:
    """A row of the table; a figure that is not known, or means nothing, is None."""

    target: str
    recipe: str
    program: str
    compiler: str
    flops: int | None = None
    bytes: int | None = None
    peak: int | None = None
    collectives: int | None = None
    copies: int | None = None
    copied: int | None = None
    float32: int | None = None

    @property
    def name(self) -> str:
        return f"{self.program} of {self.recipe}, {self.target}"

    @property
    def renewal(self) -> str:
        return f"renew the table, python tests/costs.py --only={_file(self.recipe)}"


COLUMNS = [field.name for field in dataclasses.fields(Cost)]
FIGURES = COLUMNS[COLUMNS.index("compiler") + 1 :]


def main(args, overrides):
    cli.refuse_overrides(overrides)
    jax.config.update("jax_num_cpu_devices", 8)
    for job in JOBS:
        target, recipe = job
        if target not in args.targets or _file(recipe) not in args.only:
            continue
        if not compiler(target):
            print(f"{recipe}, {target}: left as it is, for want of libtpu (pip install libtpu)")
            continue
        new, rows = measured(*job), table()  # read late: another process may be at other rows
        before = {row.name: row for row in rows}
        for row in new:
            print(row.name, *grown(before.get(row.name, row), row), sep="\n  ", flush=True)
        _write([row for row in rows if (row.target, row.recipe) != job] + new)


def table() -> list[Cost]:
    """The committed rows."""
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    read = lambda name, text: text if name not in FIGURES else int(text) if text else None
    return [Cost(**{name: read(name, row[name]) for name in COLUMNS}) for row in rows]


def grown(old: Cost, new: Cost) -> list[str]:
    """A sentence about each figure that grew; none if the compilers differ."""
    if old.compiler != new.compiler:
        return []
    pairs = [(name, getattr(old, name), getattr(new, name)) for name in FIGURES]
    return [
        f"{new.name}: {name} was {was:,} and is {now:,}. If that is meant: {new.renewal}"
        for name, was, now in pairs
        if None not in (was, now) and now > MOST * was
    ]


def compiler(target: str) -> str:
    """The versions that the figures of a target depend on; "" where it has no compiler here."""
    version = f"jax {jax.__version__}"
    if target in ("traced", "cpu:8"):
        return version
    if importlib.util.find_spec("libtpu") is None:
        return ""
    return f"{version}, libtpu {importlib.metadata.version('libtpu')}"


def measured(target: str, recipe: str) -> list[Cost]:
    """The rows of a job, as they are today."""
    if target == "traced":
        return traced(recipe)
    spec, *keys = recipe.split()
    flags = [f"--config={spec}", *(f"--config.{key}" for key in keys), *JOBS[target, recipe]]
    with tempfile.TemporaryDirectory() as folder:
        if code := call(plan, *flags, f"--topology={target}", f"--out={folder}"):
            sys.exit(code)
        return planned(recipe, pathlib.Path(folder))


def traced(recipe: str) -> list[Cost]:
    """The costs of a recipe's programs before a compiler sees them."""
    spec, *keys = recipe.split()
    overrides = dict(key.split("=", 1) for key in keys)
    config = data_lib.resolved(config_lib.load(spec, overrides))
    mesh = shard.make_mesh(devices=jax.devices("cpu")[:1])
    made = {"train": programs.training(config, mesh, cached=True)}
    if kinds.of(config).draws:
        made["sample"] = programs.sampling(config, mesh, 1)
    else:
        made |= programs.codec(config, mesh, 1)
    halves = config.dtype != "float32"
    return [of_trace(recipe, name, program, halves) for name, program in made.items()]


def of_trace(recipe: str, name: str, program: programs.Program, halves: bool = False) -> Cost:
    """The costs of a program before a compiler sees it. halves: whether it computes in bfloat16."""
    jaxpr = program.function.trace(*program.arguments.values()).jaxpr.jaxpr
    found, size = list(_equations(jaxpr)), lambda v: v.aval.size * v.aval.dtype.itemsize
    read = lambda equation: sum(size(v) for v in (*equation.invars, *equation.outvars))
    of = lambda *kinds: [(e, times) for e, times in found if e.primitive.name in kinds]
    copies, products = of("transpose", "copy"), of("dot_general", "conv_general_dilated")
    wide = lambda equation: any(v.aval.dtype == jnp.float32 for v in equation.invars)
    return Cost(
        *("traced", recipe, name, compiler("traced")),
        flops=round(flops.of_jaxpr(jaxpr)),
        bytes=sum(times * read(e) for e, times in found),
        copies=sum(times for _, times in copies),
        copied=sum(times * size(e.outvars[0]) for e, times in copies),
        float32=sum(times for e, times in products if wide(e)) if halves else None,
    )


def _equations(jaxpr, times=1):
    """(equation, how often it runs) of a jaxpr; those inside an equation stand in its place."""
    for equation in jaxpr.eqns:
        if not (bodies := flops.inner(equation)):
            yield equation, times
        for body in bodies:
            yield from _equations(body, times * flops.turns(equation))


def planned(recipe: str, folder: pathlib.Path) -> list[Cost]:
    """The costs of the programs that `plan` wrote into a folder."""
    summary = json.loads((folder / "summary.json").read_text())
    target = summary["topology"]
    return [
        of_text(
            Cost(target, recipe, part, compiler(target), peak=summary[part]["memory"]["peak"]),
            (folder / f"{part}.hlo.txt").read_text(),
        )
        for part in reports.PARTS
        if part in summary
    ]


def of_text(cost: Cost, text: str) -> Cost:
    """`cost` with the figures that the text of its compiled program has."""
    program = hlo.parse(text)
    work, moves = hlo.matrix_work(program, 1), hlo.moves(program)
    halves = not cost.target.startswith("cpu")  # whose compiler computes bfloat16 in float32
    return dataclasses.replace(
        cost,
        flops=round(sum(one.flops for one in work)),
        bytes=sum(one.nbytes for one in hlo.traffic(program)),
        collectives=len(hlo.collectives(program)),
        copies=len(moves),
        copied=sum(one.nbytes for one in moves),
        float32=sum(one.dtype == "f32" for one in work) if halves else None,
    )


def _file(recipe: str) -> str:
    return re.split("[: ]", recipe)[0]


def _write(rows):
    of = lambda row: (row.target, row.recipe)
    order = [*JOBS]
    rows = [row for row in rows if of(row) in JOBS]
    rows.sort(key=lambda row: (order.index(of(row)), reports.PARTS.index(row.program)))
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(dataclasses.asdict, rows))


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
