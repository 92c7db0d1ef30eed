import json

import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.base import errors
from ldm_jax.engine import loop, meter


def fill(m, steps):
    for step in steps:
        m.add(step, {"loss": jnp.float32(step) / 3, "norm": jnp.float32(2.0)})
    return m


def test_flush_is_the_mean_since_the_last_flush():
    m = fill(meter.Meter(), range(1, 4))
    assert m.flush() == pytest.approx({"loss": 2 / 3, "norm": 2.0})
    assert fill(m, [9]).flush() == pytest.approx({"loss": 3.0, "norm": 2.0})


def test_the_first_value_that_is_not_finite_is_named_with_its_step():
    m = fill(meter.Meter(), [1])
    m.add(2, {"loss": jnp.float32(np.nan), "norm": jnp.float32(1)})
    m.add(3, {"loss": jnp.float32(0), "norm": jnp.float32(np.inf)})
    with pytest.raises(errors.RunError, match="loss is nan at step 2"):
        m.fetch()
    with pytest.raises(errors.RunError, match="norm is inf at step 1"):
        fill_inf = meter.Meter()
        fill_inf.add(1, {"norm": jnp.float32(np.inf)})
        fill_inf.flush()


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_a_resumed_meter_gives_exactly_the_mean_of_an_uncut_one(cut):
    values = np.random.default_rng(0).normal(size=7).astype(np.float32)
    uncut, first = meter.Meter(), meter.Meter()
    for step, value in enumerate(values):
        uncut.add(step, {"loss": jnp.float32(value)})
    for step in range(cut):
        first.add(step, {"loss": jnp.float32(values[step])})
    second = meter.Meter(meta=json.loads(json.dumps(first.meta())))  # as a checkpoint keeps it
    for step in range(cut, 7):
        second.add(step, {"loss": jnp.float32(values[step])})
    assert second.flush() == uncut.flush()
    assert first.flush().keys() == {"loss"}, "fetching forgets nothing"


class OnTheDevice:
    """A number whose reading would wait for the device."""

    def __init__(self):
        self.reads = 0

    def __array__(self, dtype=None, copy=None):
        self.reads += 1
        return np.array(1.0)

    def __float__(self):
        return float(self.__array__())


def test_a_meter_reads_a_metric_once_and_only_when_somebody_asks():
    m, value = meter.Meter(), OnTheDevice()
    m.add(1, {"loss": value})
    m.add(2, {"loss": jnp.float32(3)})
    assert value.reads == 0
    assert m.fetch() == [[1, {"loss": 1.0}], [2, {"loss": 3.0}]]
    assert m.flush() == {"loss": 2.0}
    assert value.reads == 1


def test_rates_are_those_of_steps_and_of_the_wait_for_data():
    seconds = {"step": 5.0, "data": 1.0, "eval": 0.0, "compile": 9.0}
    watch = meter.Stopwatch(seconds)
    watch.restart(3)
    assert watch.measure(3, batch_size=8) == {}, "no step yet"
    seconds |= {"step": 8.0, "data": 2.0, "eval": 60.0}
    rates = watch.measure(5, batch_size=8)
    seconds |= {"step": 9.0}
    assert watch.measure(7, batch_size=8)["images_per_second"] == 16, "since the last one"
    assert rates == {"images_per_second": 4, "seconds_per_step": 2, "data_wait_fraction": 0.25}


@pytest.mark.parametrize("data, step, starved", [(6, 18, True), (6, 30, False), (4, 4, False)])
def test_a_stretch_starves_that_waits_for_a_share_of_its_time_and_not_for_moments(
    data, step, starved
):
    seconds = {"step": 0.0, "data": 0.0}
    watch = meter.Stopwatch(seconds)
    seconds |= {"step": step, "data": data}
    watch.measure(5, batch_size=8)
    assert watch.starved == starved


def test_bad_records_are_listed_once_over_all_sessions(tmp_path):
    data = loop.Data(None, None, records=100, name="r{}".format, max_bad_fraction=0.02)
    make = lambda: meter.BadRecords(tmp_path, data)
    records = make()
    records.count(np.array([-1, 7, -1, 7]))
    records.count(np.array([7, -1]))
    make().count(np.array([7, 3]))
    lines = [json.loads(s) for s in (tmp_path / "bad_records_0000.jsonl").read_text().splitlines()]
    assert lines == [{"record": 7, "name": "r7"}, {"record": 3, "name": "r3"}]
    with pytest.raises(errors.RunError, match=r"3 of 100 records do not decode, last 'r5'"):
        make().count(np.array([5]))


def test_skipped_steps_are_counted_and_left_out_of_the_mean():
    m = meter.Meter(max_bad=2)
    for step, value in enumerate([1.0, np.nan, np.inf, 3.0], 1):
        m.add(step, {"loss": jnp.float32(value)})
    assert m.flush() == {"loss": 2.0, "skipped_steps": 2.0}
    assert fill(m, [6]).flush() == pytest.approx({"loss": 2.0, "norm": 2.0})


def test_too_many_skipped_steps_in_a_row_end_the_run_across_flushes():
    m = meter.Meter(max_bad=2)
    for step in (1, 2):
        m.add(step, {"loss": jnp.float32(np.nan)})
    assert m.flush() == {"skipped_steps": 2.0}
    m.add(3, {"loss": jnp.float32(np.nan)})
    with pytest.raises(errors.RunError, match=r"loss is nan at step 3.*max_bad_steps=2"):
        m.flush()
