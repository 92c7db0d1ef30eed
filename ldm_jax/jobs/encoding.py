"""The job that fills a latent cache: posterior moments in the place of images (data/latents.py)."""

import concurrent.futures
import dataclasses
import json

import jax
import numpy as np

from ldm_jax.base import disk, errors, platforms, remote, shard, tree, watch
from ldm_jax.base import record as record_lib
from ldm_jax.data import latents, pipeline, sources
from ldm_jax.jobs import job as job_lib
from ldm_jax.jobs import outputs, settings
from ldm_jax.runs import check as check_lib
from ldm_jax.runs import codecs, keys, kinds
from ldm_jax.runs import data as data_lib


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What to encode: the flags of `encode`, which say what each field means."""

    run: str
    out: str
    dtype: str = "float16"
    batch_size: int = 64
    shard_size: int = 4096
    worker: str = ""


def encode(wanted: Encoding, data) -> dict | None:
    """Encodes the shards that are missing of `data`, a config's group of that name.

    Returns the summary, or None while other workers still encode.
    """
    seconds = watch.stopwatch()
    worker = settings.read_worker(wanted.worker)
    chains = latents.variants(data.size, data.crop, data.flip, data.interpolation)
    config = keys.read(wanted.run)
    kinds.expect(config, "autoencode", f"--run={wanted.run}")
    codec = kinds.of(config).codec(config)
    check_lib.divides(data.size, codec.f, "the downsampling factor f of --run")
    records = data_lib.open_source(data).holdout(data.holdout, train=True)
    reader = Reader(records, chains, data.threads)

    platforms.cache_compilations(record_lib.Record(wanted.run).compiled)
    mesh = shard.make_mesh(devices=jax.local_devices())
    shard.check_batch(wanted.batch_size, mesh, key="--batch_size")
    params, step = codecs.read_params(wanted.run)
    origin = {"run": remote.shown(wanted.run), "step": step, "weights": tree.digest(params)}
    index = {"data": latents.about(records, data), "first_stage": origin, "dtype": wanted.dtype}
    job = job_lib.Job(
        wanted.out, len(records), wanted.shard_size, "arrayrecord", layout=Shards(index)
    )
    with settings.owned(wanted.out, worker):
        job.claim(index)
        params = jax.device_put(params, shard.replicated(mesh))
        moments = jax.jit(codec.moments)

        def batch(first, count):
            """[count, variants, h/f, w/f, c] of records first, ...; the last fills up a batch."""
            parts = reader.read(np.minimum(range(first, first + count), len(records) - 1))
            parts = [moments(params, shard.put_batch({"image": x}, mesh)["image"]) for x in parts]
            return narrow(np.stack(jax.device_get(parts), 1), wanted.dtype)

        encoded, clocks = job_lib.work(job, worker, batch, reader.take, wanted.batch_size)
        with job.merging() as whole:
            if not whole:
                return None
            digest, size = job.finish(), sum(latents.read_index(job.out)["files"].values())
        summary = {
            "records": len(records),
            "variants": len(chains),
            "bytes": size,
            "digest": digest,
        }
        summary |= {"encoded": encoded, "seconds": seconds()}
        if encoded:
            summary["records_per_second"] = encoded / clocks["draw"]
        return summary | {"index": index}


class Shards(outputs.Format):
    """An ArrayRecord file a shard; the index when all are there.

    images: [n, variants, h/f, w/f, c]; rows: {"fields": [of each variant]}.
    """

    suffixes = ("array_record",)

    def __init__(self, index: dict):
        self._index = index

    def write(self, folder, shard, images, rows, classes):
        [name] = self.files(shard)
        partial = folder / f".{name}.tmp"
        latents.write(partial, images, [row["fields"] for row in rows])
        partial.replace(folder / name)

    def assemble(self, out, shards, rows):
        names = [f"images/{name}" for shard in shards for name in self.files(shard)]
        files = {name: remote.size(out / name) for name in names}
        text = json.dumps(self._index | {"files": files}, indent=2)
        disk.write_text(out / latents.INDEX, text + "\n")


class Reader:
    """Reads records as images, and keeps their other fields until they are taken.

    chains: the transforms of each variant of a record.
    """

    def __init__(self, source: sources.Source, chains: list, threads: int):
        self._source, self._chains, self._fields = source, chains, {}
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
        record = [pipeline.load(self._source, chain, i, (0, i))[0] for chain in self._chains]
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
