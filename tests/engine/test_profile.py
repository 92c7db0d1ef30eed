import jax
import jax.numpy as jnp
import pytest

from ldm_jax.base import errors
from ldm_jax.engine import profile


def recorded(folder):
    """The steps that the traces in a folder hold."""
    found = set()
    for file in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            events = (event for line in plane.lines for event in line.events)
            steps = (dict(event.stats).get("step_num") for event in events if event.name == "train")
            found |= {int(step) for step in steps if step is not None}
    return sorted(found)


@pytest.mark.parametrize(
    "first, last, held", [(1, 9, [3, 4, 5]), (4, 9, [4, 5]), (1, 4, [3, 4]), (6, 9, [])]
)
def test_a_trace_holds_the_steps_of_its_window_that_the_session_does(first, last, held, tmp_path):
    said, program = [], jax.jit(lambda x: x + 1)
    traced, x = profile.Profile((3, 5), tmp_path, said.append), jnp.zeros(8)
    for step in range(first, last + 1):
        traced.before(step, x)
        with traced.step(step):
            x = program(x)
        if traced.ends(step):
            traced.close(step, x)
    traced.close(last)
    assert recorded(tmp_path) == held
    assert [line.startswith("no profile") for line in said] == [not held]


def test_a_window_is_two_steps_of_the_run():
    assert profile.window("", 9) == () and profile.window("3:9", 9) == (3, 9)
    for text in ("3", "3:", "0:2", "5:4", "3:10", "3:4:5", "a:b", "-1:2", "3 : 4", "9" * 99):
        with pytest.raises(errors.UsageError, match="must be FIRST:LAST"):
            profile.window(text, 9)
