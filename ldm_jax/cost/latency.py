"""What drawing an image costs: calls of the denoiser, decoding, and a GAN's generator beside them.

A student of few steps needs one to four calls with one row for an image, its teacher dozens, with
two rows for an image where it is guided.
"""

import functools

import jax
import jax.numpy as jnp

from ldm_jax.base import shard
from ldm_jax.cost import gan, programs, timing
from ldm_jax.runs import kinds

BATCHES = (1, 16, 64)


def measure(config, mesh, repeats: int, decoder=None) -> dict:
    """{"batches": {batch: {part: seconds for the batch}}} for BATCHES, sizes, and the teacher.

    Parts: `call` of the denoiser; `guided_call`, with two rows for an image; `decode`;
    `other_decode` by the first stage of the config `decoder`, where one is given; and two of a
    GAN's generators (gan.py): `small_generator` has as many parameters in its convolutions as the
    decoder has, `generator` does as many operations.
    """
    decoders = {"decode": config} | ({"other_decode": decoder} if decoder else {})
    sizes = {name: _sizes(one, mesh) for name, one in decoders.items()}
    generators = {}
    for name, size in (("small_generator", "parameters"), ("generator", "operations")):
        of, wanted = getattr(gan, size), sizes["decode"][size]
        one = gan.nearest(config.data.size, of, wanted, jnp.dtype(config.dtype))
        generators[name] = one
        sizes[name] = {"parameters": gan.parameters(one), "operations": gan.operations(one)}
    teacher = {"steps": config.sample.steps, "guided": config.sample.guidance != 1.0}
    found = {"teacher": teacher, "sizes": sizes, "batches": {}}
    for b in BATCHES:
        parts = {"call": _call(config, mesh, b), "guided_call": _call(config, mesh, 2 * b)}
        parts |= {name: _decoding(one, mesh, b) for name, one in decoders.items()}
        parts |= {name: _generating(one, mesh, b) for name, one in generators.items()}
        found["batches"][b] = {name: _seconds(part, repeats) for name, part in parts.items()}
    return found


def lines(found: dict) -> list[str]:
    """Milliseconds an image of each part and way of drawing, and how many times a generator's."""
    steps, guided = found["teacher"]["steps"], found["teacher"]["guided"]
    said = ["latency     milliseconds an image, and how many times the generator's"]
    for name, size in found["sizes"].items():
        m, gflop = size["parameters"] / 1e6, size["operations"] / 1e9
        said.append(f"  {name}: {m:.3g}M parameters, {gflop:.3g} GFLOP an image")
    for b, seconds in found["batches"].items():
        ways = dict(seconds)
        teacher = seconds["guided_call" if guided else "call"]
        ways[f"{steps} calls and decode"] = steps * teacher + seconds["decode"]
        ways["1 call and decode"] = seconds["call"] + seconds["decode"]
        if "other_decode" in seconds:
            ways["1 call and other_decode"] = seconds["call"] + seconds["other_decode"]
        each = ", ".join(
            f"{name} {1e3 * s / int(b):.3g} ({s / seconds['generator']:.3g}x)"
            for name, s in ways.items()
        )
        said.append(f"  batch {b}: {each}")
    return said


def _call(config, mesh, rows: int) -> programs.Program:
    one = config.copy_and_resolve_references()
    one.batch_size = rows
    function, given = kinds.of(one).forward(one)
    return _program(function, mesh, *given)


def _decoding(config, mesh, b: int) -> programs.Program:
    return programs.codec(config, mesh, b)["decode"]


def _sizes(config, mesh) -> dict:
    program, network = _decoding(config, mesh, 1), kinds.of(config).codec(config).model
    init = functools.partial(network.init, method="decode")  # what decoding reads, and no more
    key, z = jax.eval_shape(lambda: jax.random.key(0)), program.arguments["batch"]
    leaves = jax.tree.leaves(jax.eval_shape(init, key, z)["params"])
    return {"parameters": sum(leaf.size for leaf in leaves), "operations": program.flops()}


def _generating(generator, mesh, b: int) -> programs.Program:
    return _program(generator.apply, mesh, gan.variables(generator), gan.latent(b))


def _program(function, mesh, *given) -> programs.Program:
    whole = shard.abstract(given, shard.replicated(mesh))
    return programs.Program(jax.jit(function), dict(enumerate(whole)))


def _seconds(program: programs.Program, repeats: int) -> float:
    compiled, given = program.lower().compile(), programs.fill(program)
    return timing.repeated(lambda: compiled(*given), repeats)["seconds"]
