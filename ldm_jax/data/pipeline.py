"""Batches with grain: which rows a step sees is a function of (seed, step, row) and nothing else.

Global row g = step * batch_size + row reads record order[g] and draws its augmentation from (seed,
g). Hosts, workers, threads and restarts only decide who computes a row, so the step alone tells
where to resume. If workers made batches of single rows, which is grain's usual way, batches would
depend on the number of workers; here one element of the data set is already a host's whole batch.
"""

import dataclasses

import grain
import numpy as np

from ldm_jax.base import errors
from ldm_jax.data import images, sources

_ENDLESS = 2**40  # steps
_EVALUATION = 2**63  # key of evaluation's random stream: no training seed reaches it


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
    prefetch: int = 4,
    fields: tuple[str, ...] = ("image",),
    max_replacements: int = 8,
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
      prefetch: batches kept ready in each process.
      max_replacements: records to try in the place of a bad one before giving up.

    Raises:
      UsageError: at once, for sizes that do not divide and for fields that the records lack.
    """
    rows = _rows(source, transforms, batch_size, host, hosts, fields, max_replacements)
    if not 0 <= seed < 2**32:
        raise errors.UsageError(f"seed={seed}: give a number from 0 to {2**32 - 1}.")
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    batches = TrainRows(rows, start_step, seed, order)
    data = grain.MapDataset.source(batches).to_iter_dataset(_read_options(threads, prefetch))
    if workers:
        _parse_absl_flags()
        options = grain.MultiprocessingOptions(
            num_workers=workers, per_worker_buffer_size=max(1, prefetch // 2)
        )
        data = data.mp_prefetch(options)
    return Batches(iter(data))


def eval_batches(
    source: sources.Source,
    transforms: list,
    *,
    batch_size: int,
    count: int | None = None,
    host: int = 0,
    hosts: int = 1,
    threads: int = 4,
    fields: tuple[str, ...] = ("image",),
    max_replacements: int = 8,
) -> "Batches":
    """The first `count` records (all, if None) in order, each once.

    Yields as `train_batches` does, with `real` float32 [batch_size / hosts]: 1 for a real row, 0
    for the rows that fill up the last batch and for records that did not decode. All hosts get the
    same number of batches.
    """
    rows = _rows(source, transforms, batch_size, host, hosts, fields, max_replacements)
    count = len(source) if count is None else min(count, len(source))
    if count < 1:
        raise errors.UsageError(f"count={count}: evaluate on at least 1 record.")
    data = grain.MapDataset.source(EvalRows(rows, count))
    return Batches(iter(data.to_iter_dataset(_read_options(threads, 2))))


class Batches:
    """An iterator to be closed (`close()` or `with`): it may own threads and worker processes."""

    def __init__(self, iterator):
        self._iterator = iterator

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            raise StopIteration
        return next(self._iterator)

    def close(self):
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()


@dataclasses.dataclass(frozen=True)
class Rows:
    """How one row of a batch is made, and which rows of a global batch are this host's."""

    source: sources.Source
    transforms: tuple
    batch_size: int
    host: int
    hosts: int
    fields: tuple[str, ...]
    max_replacements: int

    def of_step(self, step: int) -> range:
        """This host's global row numbers in a step."""
        local = self.batch_size // self.hosts
        first = step * self.batch_size + self.host * local
        return range(first, first + local)

    def make(self, index: int, key: tuple[int, int]) -> tuple[dict, int]:
        """Record `index`, transformed, and -1; or a substitute and the bad record's index."""
        record, used = self.whole(index, key)
        return {f: record[f] for f in self.fields}, -1 if used == index else index

    def whole(self, index: int, key: tuple[int, int]) -> tuple[dict, int]:
        """The transformed record with all that it has, and its index or its substitute's."""
        chosen = index
        for attempt in range(self.max_replacements + 1):
            try:
                return self._transform(self.source[chosen], chosen, key), chosen
            except images.BadRecord as e:
                problem = e
            draw = np.random.Generator(np.random.Philox(key=(index, attempt)))
            chosen = int(draw.integers(len(self.source)))
        raise errors.RunError(
            f"{self.source.name(index)} is bad, and so are the {self.max_replacements} records "
            f"tried in its place (last: {problem}); check the data."
        )

    def _transform(self, record, index, key):
        # Word 2 of the counter sets these streams apart from those of `data.scenes`.
        rng = np.random.Generator(np.random.Philox(counter=np.array([0, 0, 1, 0]), key=key))
        for transform in self.transforms:
            try:
                record = transform(record, rng)
            except images.BadRecord as e:
                raise images.BadRecord(f"{self.source.name(index)} {e}") from e
        return record

    def stack(self, rows: list[tuple[dict, int]]) -> dict[str, np.ndarray]:
        batch = {f: _stack(f, [row[f] for row, _ in rows]) for f in self.fields}
        return batch | {"bad": np.array([bad for _, bad in rows], np.int32)}


@dataclasses.dataclass(frozen=True)
class TrainRows:
    """A random-access source whose element n is this host's batch of step start_step + n."""

    rows: Rows
    start_step: int
    seed: int
    order: grain.MapDataset

    def __len__(self):
        return _ENDLESS

    def __getitem__(self, n):
        numbers = self.rows.of_step(self.start_step + n)
        return self.rows.stack(
            [self.rows.make(int(self.order[g]), (self.seed, g)) for g in numbers]
        )


@dataclasses.dataclass(frozen=True)
class EvalRows:
    """The same for evaluation: records in order, the last batch filled up."""

    rows: Rows
    count: int

    def __len__(self):
        return -(-self.count // self.rows.batch_size)

    def __getitem__(self, n):
        numbers = self.rows.of_step(n)
        # Filling rows repeat the last record: their content is masked, but it must be well formed.
        batch = self.rows.stack(
            [self.rows.make(min(g, self.count - 1), (_EVALUATION, g)) for g in numbers]
        )
        real = ((np.array(numbers) < self.count) & (batch["bad"] < 0)).astype(np.float32)
        return batch | {"real": real}


def _rows(source, transforms, batch_size, host, hosts, fields, max_replacements) -> Rows:
    """Checks what can be checked before the first batch."""
    if batch_size < 1 or batch_size % hosts:
        nearest = max(1, round(batch_size / hosts)) * hosts
        raise errors.UsageError(
            f"batch_size={batch_size} must divide by {hosts} host(s); nearest: {nearest}."
        )
    if not 0 <= host < hosts:
        raise errors.UsageError(f"host={host}: give a number from 0 to {hosts - 1}.")
    everything = Rows(source, tuple(transforms), batch_size, host, hosts, (), max_replacements)
    try:
        record, _ = everything.whole(0, (0, 0))
    except errors.RunError as e:
        raise errors.UsageError(str(e)) from e
    except KeyError as e:
        raise errors.UsageError(
            f"A condition is made of data field {e}, which the records lack; a latent cache keeps "
            "no pixels: train such conditions from images (--config.latents.cache=)."
        ) from e
    for field in fields:
        if field not in record:
            raise errors.UsageError(
                f"Data field {field!r} is not in the records (they have {', '.join(record)})"
                f"{errors.nearest(field, record)}; choose a condition that the data has."
            )
    return dataclasses.replace(everything, fields=tuple(fields))


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


def _read_options(threads: int, prefetch: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, prefetch))


def _parse_absl_flags():
    # mp_prefetch passes absl's flags to its workers and refuses flags that nobody has parsed,
    # which is the state of a notebook or a test.
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
