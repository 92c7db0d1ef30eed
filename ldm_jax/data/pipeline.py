"""Batches with grain: which rows a step sees is a function of (seed, step, row) and nothing else.

Global row g = step * batch_size + row reads record order[g] and draws its augmentation from (seed,
g). Hosts, workers, threads and restarts only decide who computes a row, so the step alone tells
where to resume. If workers made batches of single rows, which is grain's usual way, batches would
depend on the number of workers; here one element of the data set is already a host's whole batch.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from absl import flags

from ldm_jax.base import errors
from ldm_jax.data import images, sources

_ENDLESS = 2**40  # steps
_EVALUATION = 2**63  # key of evaluation's random stream: no training seed reaches it
_PREFETCH = 4  # batches kept ready in each process
REPLACEMENTS = 8  # records to try in the place of a bad one before giving up


def train_batches(
    source: sources.Source,
    transforms: list,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    host: int = 0,
    hosts: int = 1,
    workers: int = 0,
    threads: int = 4,
    fields: tuple[str, ...] = ("image",),
) -> "Batches":
    """This host's part of the batches of steps start_step, start_step + 1, ... without end.

    Yields `{field: [batch_size / hosts, ...]}` and `bad` int32 [batch_size / hosts]: the index of
    the record that did not decode, or -1. Its row holds another record, the same one every time.
    Each epoch is another permutation of the records. Strings come as an object array.

    Args:
      batch_size: global rows a step, over all hosts.
      workers: processes; 0 reads in this one. Workers are spawned, so a script that uses them needs
        `if __name__ == "__main__":`.
      threads: batches read at a time in each process.

    Raises:
      UsageError: at once, for sizes that do not divide and for fields that the records lack.
    """
    if not 0 <= seed < 2**32:
        raise errors.UsageError(f"seed={seed}: give a number from 0 to {2**32 - 1}.")
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    part = Part(source, transforms, fields, batch_size, host, hosts, order, seed, start_step)
    return _batches(part, threads, workers)


def eval_batches(
    source: sources.Source,
    transforms: list,
    *,
    batch_size: int,
    count: int | None = None,
    host: int = 0,
    hosts: int = 1,
    fields: tuple[str, ...] = ("image",),
) -> "Batches":
    """The first `count` records (all, if None) in order, each once.

    Yields as `train_batches` does, with `real` float32 [batch_size / hosts]: 1 for a real row, 0
    for the rows that fill up the last batch and for records that did not decode. All hosts get the
    same number of batches.
    """
    count = len(source) if count is None else min(count, len(source))
    if count < 1:
        raise errors.UsageError(f"count={count}: evaluate on at least 1 record.")
    # Filling rows repeat the last record: their content is masked, but it must be well formed.
    order = np.minimum(np.arange(count + batch_size), count - 1)
    part = Part(source, transforms, fields, batch_size, host, hosts, order, _EVALUATION, real=count)
    return _batches(part, threads=4)


class Batches(Iterator, contextlib.AbstractContextManager):
    """An iterator to be closed (`close()` or `with`): it may own threads and worker processes."""

    def __init__(self, iterator):
        self._iterator = iterator

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            raise StopIteration
        return next(self._iterator)

    def close(self):
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()

    def __exit__(self, *unused):
        self.close()


@dataclasses.dataclass(frozen=True)
class Part:
    """A random-access source of batches: element n is this host's part of step start_step + n.

    order: the number of the record in each global row; key: with the row, the key of its random
    stream; real: how many rows come before those that only fill up the last batch, None for
    training, which has no last batch.
    """

    source: sources.Source
    transforms: Sequence[Callable]
    fields: tuple[str, ...]
    batch_size: int
    host: int
    hosts: int
    order: grain.MapDataset | np.ndarray
    key: int
    start_step: int = 0
    real: int | None = None

    def __len__(self):
        return _ENDLESS if self.real is None else -(-self.real // self.batch_size)

    def __getitem__(self, n):
        local = self.batch_size // self.hosts
        first = (self.start_step + n) * self.batch_size + self.host * local
        rows, made, bad = range(first, first + local), [], []
        for row in rows:
            index = int(self.order[row])
            record, used = load(self.source, self.transforms, index, (self.key, row))
            made.append(record)
            bad.append(-1 if used == index else index)
        batch = {f: _stack(f, [record[f] for record in made]) for f in self.fields}
        batch["bad"] = np.array(bad, np.int32)
        if self.real is not None:
            batch["real"] = np.float32((np.array(rows) < self.real) & (batch["bad"] < 0))
        return batch


def load(
    source: sources.Source, transforms: Sequence[Callable], index: int, key: tuple[int, int]
) -> tuple[dict, int]:
    """Record `index`, transformed, and its index; for a bad one its substitute and that one's.

    key: (seed, row) of the random stream that the transforms draw from.

    Raises:
      RunError: if the substitutes are bad too.
    """
    chosen = index
    for attempt in range(REPLACEMENTS + 1):
        try:
            return _transform(source, transforms, chosen, key), chosen
        except images.BadRecord as e:
            problem = e
        draw = np.random.Generator(np.random.Philox(key=(index, attempt)))
        chosen = int(draw.integers(len(source)))
    raise errors.RunError(
        f"{source.name(index)} is bad, and so are the {REPLACEMENTS} records tried in its place "
        f"(last: {problem}); check the data."
    )


def _transform(source, transforms, index, key):
    # Word 2 of the counter keeps these streams apart from those of the procedural scenes.
    rng = np.random.Generator(np.random.Philox(counter=np.array([0, 0, 1, 0]), key=key))
    record = source[index]
    for transform in transforms:
        try:
            record = transform(record, rng)
        except images.BadRecord as e:
            raise images.BadRecord(f"{source.name(index)} {e}") from e
    return record


def _batches(part: Part, threads: int, workers: int = 0) -> Batches:
    """Checks what can be checked before the first batch, and begins to read."""
    batch_size, host, hosts = part.batch_size, part.host, part.hosts
    if batch_size < 1 or batch_size % hosts:
        nearest = max(1, round(batch_size / hosts)) * hosts
        raise errors.UsageError(
            f"batch_size={batch_size} must divide by {hosts} host(s); nearest: {nearest}."
        )
    if not 0 <= host < hosts:
        raise errors.UsageError(f"host={host}: give a number from 0 to {hosts - 1}.")
    try:
        record, _ = load(part.source, part.transforms, 0, (0, 0))
    except errors.RunError as e:
        raise errors.UsageError(str(e)) from e
    except KeyError as e:
        held = part.source[0]
        remedy = "choose a condition that the data has"
        if "image" not in held:
            remedy = "a latent cache keeps no pixels: train from images (--config.latents.cache=)"
        raise errors.UsageError(
            f"A condition is made of data field {e}, which the records lack (they have "
            f"{', '.join(held)}); {remedy}."
        ) from e
    for field in part.fields:
        if field not in record:
            raise errors.UsageError(
                f"Data field {field!r} is not in the records (they have {', '.join(record)})"
                f"{errors.nearest(field, record)}; choose a condition that the data has."
            )
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, _PREFETCH))
    data = grain.MapDataset.source(part).to_iter_dataset(reading)
    if workers:
        # mp_prefetch passes absl's flags to its workers and refuses flags that nobody has parsed,
        # which is the state of a notebook or a test.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=_PREFETCH // 2)
        data = data.mp_prefetch(options)
    return Batches(iter(data))


def _stack(field: str, values: list) -> np.ndarray:
    if isinstance(values[0], str):
        return np.array(values, object)
    shapes = {np.shape(v) for v in values}
    if len(shapes) > 1:
        raise errors.RunError(
            f"Data field {field!r} has shapes {sorted(shapes)} in one batch; "
            "add a transform that makes them equal, as Crop does for images."
        )
    return np.stack(values)
