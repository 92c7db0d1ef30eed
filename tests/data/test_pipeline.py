"""Laws of the pipeline: batches depend on (seed, step, row) and on nothing else."""

import subprocess
import sys

import numpy as np
import pytest

from ldm_jax.base import errors
from ldm_jax.data import images, pipeline, sources, transforms

COUNT = 21
FIELDS = ("image", "class", "index", "caption")
CHAIN = transforms.standard(8, "random", flip=True)


class Numbered(sources.Source):
    """Wide pictures whose first pixel tells their index, some of them bad. Picklable."""

    classes = ("even", "odd")

    def __init__(self, count=COUNT, bad=()):
        self._count, self._bad = count, set(bad)

    def __len__(self):
        return self._count

    def name(self, i):
        return f"number {i}"

    def __getitem__(self, i):
        if i in self._bad:
            raise images.BadRecord(f"number {i}: bad")
        image = np.random.default_rng(i).integers(0, 256, (8, 12, 3)).astype(np.uint8)
        return {"image": image, "class": np.int32(i % 2), "index": np.int32(i), "caption": f"{i}"}


def take(n, source=None, **kwargs):
    kwargs = {"batch_size": 8, "seed": 5, "fields": FIELDS} | kwargs
    with pipeline.train_batches(source or Numbered(), CHAIN, **kwargs) as batches:
        return [next(batches) for _ in range(n)]


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_same_global_batches(hosts):
    whole = take(5)
    parts = [take(5, host=h, hosts=hosts) for h in range(hosts)]
    for step in range(5):
        joined = {k: np.concatenate([p[step][k] for p in parts]) for k in whole[step]}
        assert_same(whole[step], joined)


def test_a_restart_goes_on_where_it_was_whatever_the_threads():
    whole = take(9)
    for start, threads in ((3, 1), (7, 8)):  # an epoch is 2.6 steps
        for a, b in zip(whole[start:], take(9 - start, start_step=start, threads=threads)):
            assert_same(a, b)


def test_worker_processes_do_not_change_batches():
    for a, b in zip(take(4, start_step=2), take(4, start_step=2, workers=2, threads=2)):
        assert_same(a, b)


def test_each_epoch_is_another_permutation():
    order = np.concatenate([b["index"] for b in take(8)])[: 3 * COUNT].reshape(3, COUNT)
    for epoch in order:
        assert sorted(epoch) == list(range(COUNT))
    assert len({tuple(epoch) for epoch in order}) == 3


def test_seeds_change_order_and_augmentation_differs_between_epochs():
    a, b = take(1)[0], take(1, seed=6)[0]
    assert (a["index"] != b["index"]).any()
    rows = {}
    for batch in take(30):
        for index, image in zip(batch["index"], batch["image"]):
            rows.setdefault(int(index), []).append(image.tobytes())
    assert all(len(set(seen)) > 1 for seen in rows.values())


def test_bad_records_are_replaced_by_the_same_others_and_reported():
    bad = {2, 11}
    batches = take(30, Numbered(bad=bad))
    substitutes = {}
    for clean, batch in zip(take(30), batches):
        good = batch["bad"] == -1
        assert batch["bad"].dtype == np.int32
        np.testing.assert_array_equal(clean["image"][good], batch["image"][good])
        np.testing.assert_array_equal(clean["index"][~good], batch["bad"][~good])
        for failed, used in zip(batch["bad"][~good], batch["index"][~good]):
            substitutes.setdefault(int(failed), set()).add(int(used))
    assert substitutes.keys() == bad and all(len(s) == 1 for s in substitutes.values())
    assert not bad & set.union(*substitutes.values())


def test_too_many_bad_records_stop_with_a_reason():
    with pytest.raises(errors.RunError, match=r"number \d+.*\b8 "):
        take(30, Numbered(bad=range(1, COUNT)))
    with pytest.raises(errors.UsageError, match="number 0"):
        take(1, Numbered(bad=range(COUNT)))


@pytest.mark.parametrize("count", [None, 10])
def test_evaluation_sees_each_record_once_in_order(count):
    seen = {}
    for host in range(2):
        with pipeline.eval_batches(
            Numbered(bad=[4]), transforms.standard(8), batch_size=8, count=count, host=host,
            hosts=2, fields=("image", "index"),
        ) as batches:  # fmt: skip
            for step, batch in enumerate(batches):
                assert batch["image"].shape == (4, 8, 8, 3) and batch["real"].dtype == np.float32
                seen[step, host] = batch["index"][batch["real"] == 1]
    assert len(seen) == 2 * (-(-(count or COUNT) // 8))
    joined = np.concatenate([seen[key] for key in sorted(seen)])
    np.testing.assert_array_equal(joined, [i for i in range(count or COUNT) if i != 4])


def test_one_record_is_enough():
    assert take(2, Numbered(1))[1]["index"].tolist() == [0] * 8


def test_usage_errors_come_before_the_first_batch():
    for kwargs, message in [
        ({"batch_size": 9, "hosts": 2}, "nearest: 8"),
        ({"host": 2, "hosts": 2}, "host=2"),
        ({"fields": ("klass",)}, "did you mean 'class'"),
        ({"seed": -1}, "seed=-1"),
    ]:
        with pytest.raises(errors.UsageError, match=message) as caught:
            take(0, **kwargs)
        assert "\n" not in str(caught.value)


def test_ragged_fields_say_what_is_missing():
    with (
        pipeline.train_batches(
            sources.open_source("scenes", size=8, count=9), [Shrink()], batch_size=4, seed=0
        ) as batches,
        pytest.raises(errors.RunError, match=r"image.*8, 2, 3"),
    ):
        next(batches)


class Shrink:
    """Cuts to a random width."""

    def __call__(self, record, rng):
        return record | {"image": record["image"][:, : rng.integers(1, 8)]}


def test_a_closed_iterator_ends():
    batches = pipeline.train_batches(Numbered(), CHAIN, batch_size=8, seed=0)
    next(batches)
    batches.close()
    batches.close()
    assert list(batches) == []


def test_only_grain_brings_jax_in():
    code = (
        "import sys; from ldm_jax.data import sources, transforms;"
        "from ldm_jax.scenes import checker;"
        "sys.exit(bool({'jax', 'grain', 'tensorflow'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
