"""The table of costs: today's programs cost no more than it says (tests/costs.py)."""

import dataclasses

import costs
import jax
import jax.numpy as jnp
import pytest

from ldm_jax.cost import programs

ROWS = {row.name: row for row in costs.table()}
LONG = [job for job in costs.JOBS if job[0] != "traced" or job[1] not in costs.SMALL]


def check(rows):
    """Fails for each figure of the rows that grew, and for rows that the table lacks."""
    said = []
    for row in rows:
        if row.name in ROWS:
            said += costs.grown(ROWS[row.name], row)
        else:
            said.append(f"{row.name} is missing: {row.renewal}")
    assert not said, "\n".join(said)


@pytest.mark.parametrize("recipe", costs.SMALL)
def test_programs_cost_no_more_than_the_table_says(recipe):
    check(costs.traced(recipe))


@pytest.mark.slow
@pytest.mark.parametrize("target, recipe", LONG)
def test_large_programs_cost_no_more_than_the_table_says(target, recipe):
    rows = [row for row in ROWS.values() if (row.target, row.recipe) == (target, recipe)]
    [wanted], here = {row.compiler for row in rows}, costs.compiler(target)
    if here != wanted:
        pytest.skip(f"the table has figures of {wanted}, and here is {here or 'no libtpu'}")
    check(costs.measured(target, recipe))


def test_every_program_has_a_row():
    assert {(row.target, row.recipe) for row in ROWS.values()} == set(costs.JOBS)


# What the guard must see, on programs of a few lines


def program(function):
    rows = jax.ShapeDtypeStruct((64, 32), jnp.bfloat16)
    return programs.Program(jax.jit(function), {"x": rows, "y": rows})


def cost(function):
    return costs.of_trace("toy", "train", program(function), halves=True)


def compiled_cost(function):
    text = program(function).lower().compile().as_text()
    return costs.of_text(costs.Cost("cpu:8", "toy", "train", costs.compiler("cpu:8")), text)


def once(x, y):
    return (x + 1).T.copy(), x @ y.T


def twice(x, y):
    return (x + 1).T.copy(), (x + 2).T.copy(), x @ y.T


def wide(x, y):
    return (x + 1).T.copy(), x.astype(jnp.float32) @ y.T.astype(jnp.float32)


def names(old, new):
    return {said.partition(": ")[2].split()[0] for said in costs.grown(old, new)}


@pytest.mark.parametrize("of", [cost, compiled_cost])
def test_a_change_that_doubles_a_copy_is_caught(of):
    assert not costs.grown(of(once), of(once))
    assert {"copies", "copied", "bytes"} <= names(of(once), of(twice))


def test_a_product_that_becomes_float32_is_caught():
    assert {"float32"} <= names(cost(once), cost(wide))
    assert "float32 was 0 and is 1" in "".join(costs.grown(cost(once), cost(wide)))


def test_what_grew_is_said_with_both_numbers_and_the_way_to_renew_them():
    old = costs.Cost("traced", "kl_f4 batch_size=4", "train", "jax 1", flops=1_000, bytes=100)
    new = dataclasses.replace(old, flops=1_030, bytes=102)
    [said] = costs.grown(old, new)
    assert said.startswith("train of kl_f4 batch_size=4, traced: flops was 1,000 and is 1,030")
    assert said.endswith("python tests/costs.py --only=kl_f4")
    assert not costs.grown(old, dataclasses.replace(new, compiler="jax 2"))
    assert not costs.grown(new, old)
