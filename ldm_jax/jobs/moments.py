"""The job that fills a latent cache: posterior moments in the place of images (data/latents.py)."""

import concurrent.futures
import json

import numpy as np

from ldm_jax.base import disk, errors
from ldm_jax.data import latents
from ldm_jax.jobs import job, outputs


class Shards(outputs.Format):
    """An ArrayRecord file a shard; the index when all are there.

    images: [n, variants, h/f, w/f, c]; rows: {"fields": [of each variant]}.
    """

    def __init__(self, index: dict):
        self._index = index

    def files(self, shard):
        return [f"{shard.number:05d}.array_record"]

    def write(self, folder, shard, images, rows, classes):
        [name] = self.files(shard)
        partial = folder / f".{name}.tmp"
        latents.write(partial, images, [row["fields"] for row in rows])
        partial.replace(folder / name)

    def assemble(self, out, shards, rows):
        names = [f"images/{name}" for shard in shards for name in self.files(shard)]
        files = {name: (out / name).stat().st_size for name in names}
        text = json.dumps(self._index | {"files": files}, indent=2)
        disk.write_text(out / latents.INDEX, text + "\n")


class Job(job.Job):
    """See jobs.job.Job; index: what the cache will say of its data and weights."""

    def __init__(self, out, num: int, shard_size: int, index: dict):
        super().__init__(out, num, shard_size, "arrayrecord")
        self.format = Shards(index)


class Reader:
    """Reads records as images, and keeps their other fields until they are taken.

    readers: pipeline.Rows, one for each variant of a record.
    """

    def __init__(self, readers, threads: int):
        self._readers, self._fields = readers, {}
        self._pool = concurrent.futures.ThreadPoolExecutor(max(1, threads))

    def read(self, indices) -> list[np.ndarray]:
        """The records' images, [n, h, w, 3] for each variant. A bad one's place is taken."""
        records = list(self._pool.map(self._record, map(int, indices)))
        return [np.stack([r["image"] for r in variant]) for variant in zip(*records)]

    def take(self, i: int) -> dict:
        """{"fields": [of each variant]} of record i, which is then forgotten."""
        return {"fields": self._fields.pop(i)}

    def _record(self, i):
        # No transform of a variant draws from the key.
        record = [rows.whole(i, (0, i))[0] for rows in self._readers]
        self._fields[i] = [latents.plain_fields(variant) for variant in record]
        return record


def narrow(moments: np.ndarray, dtype: str) -> np.ndarray:
    """float32 -> float16 or bfloat16; raises RunError for what that cannot hold."""
    with np.errstate(over="ignore"):
        small = moments.astype(dtype)
    if not np.all(np.isfinite(small.astype(np.float32))):
        remedy = "take --dtype=bfloat16" if np.all(np.isfinite(moments)) else "check its training"
        raise errors.RunError(
            f"The first stage's moments reach {np.abs(moments).max():.3g}, which {dtype} cannot "
            f"hold: {remedy}."
        )
    return small
