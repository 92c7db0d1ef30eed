"""A job that draws images by the thousand, on as many workers as there are, and can die and go on.

DIR/manifest.json says what is drawn: every setting that an image depends on, and the weights.
DIR/shards/00000.json says that a shard is finished, with a digest of its files. A shard that lacks
its record, or whose files are not what the record says, is drawn again; nothing else is.
"""

import concurrent.futures
import contextlib
import json
import pathlib
import time

import numpy as np

from ldm_jax.base import config as config_lib
from ldm_jax.base import disk, errors, owner, remote, values
from ldm_jax.base import progress as progress_lib
from ldm_jax.engine import preempt
from ldm_jax.jobs import outputs

# What is read of manifest.json and of a shard's record
_SIZE = values.of(values.Positive)
MANIFEST = values.Fields({"shard_size": _SIZE, "format": values.Text()})
RECORD = values.Fields({"end": _SIZE, "rows": values.Several(values.Mapping(None), most=2**24)})


class Job:
    """One folder of samples.

    Args:
      out: the folder.
      num: images of the job; a finished job goes on from its last whole shard when it is raised.
      shard_size: images of a shard, the unit of work that a kill can cost.
      format: a name of outputs.FORMATS.
      classes: how many classes the images are of, 0 for none.
      layout: an outputs.Format of one's own, where `format` is only what the manifest says.
    """

    def __init__(self, out, num, shard_size: int, format: str, classes: int = 0, layout=None):
        self.out, self.num, self._classes = pathlib.Path(out), num, classes
        self.format = layout or outputs.FORMATS.get(format)
        self.shards = outputs.shards(num, shard_size)
        self._own = {"shard_size": shard_size, "format": format}

    def claim(self, manifest: dict):
        """Writes manifest.json; refuses a folder that holds samples of other settings or none."""
        manifest = json.loads(json.dumps(manifest | self._own))  # as it will be read back
        file = self.out / "manifest.json"
        with owner.lock(self.out, "job"):
            remote.fetch(self.out, file.name)
            if not disk.there(file):
                if any(remote.place(self.out / "shards").glob("*.json")):
                    raise errors.UsageError(
                        f"{self.out} holds shards and no {file.name}, so that nobody knows what "
                        "they are of: restore it, or take another --out."
                    )
                disk.write_text(file, json.dumps(manifest, indent=2) + "\n")
            elif (old := disk.read_json(file)) != manifest:
                changed = "; ".join(config_lib.difference(old, manifest))
                raise errors.UsageError(
                    f"{self.out} holds other samples ({changed}); take another --out."
                )

    def missing(self, worker: int = 0, workers: int = 1) -> list[outputs.Shard]:
        """The unfinished shards that are this worker's: every `workers`-th."""
        own = self.shards[worker::workers]
        remote.fetch(self.out / "shards", *(self._file(s).name for s in own))
        records = {s: self._record(s) for s in own}
        self._fetch(*(s for s in own if records[s]))
        return [s for s in own if records[s].get("sha256", "") != self._digest(s)]

    def unrecorded(self) -> list[outputs.Shard]:
        """The shards, anybody's, of which no record says that they are finished."""
        return [s for s in self.shards if not self._record(s)]

    def forget(self, shards: list[outputs.Shard]):
        """Removes the records of what is drawn again, so that nobody takes it for finished."""
        damaged = [file for file in map(self._file, shards) if disk.there(file)]
        for file in damaged:
            file.unlink()
        if damaged:
            remote.settle()

    @contextlib.contextmanager
    def merging(self):
        """Yields whether all shards are there, to one worker at a time: the last one merges."""
        with owner.lock(self.out, "job"):
            remote.fetch(self.out / "shards", *(self._file(s).name for s in self.shards))
            left = self.unrecorded()
            if left:
                shards = f"{len(left)} of {len(self.shards)} shards"
                print(f"{shards} are other workers' and not finished yet.", flush=True)
            yield not left

    def write(self, shard: outputs.Shard, images, rows):
        """The files, then the record. images: uint8 [n, h, w, 3]; rows: one dict each."""
        folder = self.out / "images"
        folder.mkdir(parents=True, exist_ok=True)
        self.format.write(folder, shard, images, rows, self._classes)
        record = {"begin": shard.begin, "end": shard.end, "sha256": self._digest(shard)}
        disk.write_text(self._file(shard), json.dumps(record | {"rows": rows}) + "\n")

    def finish(self) -> str:
        """Writes what only a whole job has; returns the digest of all shards."""
        for litter in self.out.glob("*/.*.tmp"):  # of processes that were killed
            litter.unlink(missing_ok=True)
        self.format.assemble(self.out, self.shards, self.rows())
        return outputs.digest(self.out, [f"shards/{s.number:05d}.json" for s in self.shards])

    def rows(self) -> list[dict]:
        """What is known of each image."""
        return [row for shard in self.shards for row in self._record(shard)["rows"]]

    def batches(self):
        """(uint8 [n, h, w, 3], rows) of every shard."""
        for shard in self.shards:
            self._fetch(shard)
            images = self.format.read(self.out / "images", shard)
            yield images, self._record(shard)["rows"]

    def read(self, indices) -> list:
        """The images with these indices, uint8 [h, w, 3] each; a shard is read once."""
        size, found = self._own["shard_size"], {}
        for number in sorted({i // size for i in indices}):
            shard = self.shards[number]
            self._fetch(shard)
            images = self.format.read(self.out / "images", shard)
            found |= {i: images[i - shard.begin] for i in indices if i // size == number}
        return [found[i] for i in indices]

    def _record(self, shard) -> dict:
        """What says that the shard is finished; {} where nothing does."""
        try:
            record = disk.read_json(self._file(shard))
        except errors.UsageError:
            return {}
        same = record.get("begin") == shard.begin and record.get("end") == shard.end
        return record if same else {}

    def _file(self, shard):
        return self.out / "shards" / f"{shard.number:05d}.json"

    def _fetch(self, *shards):
        """Brings the files of shards of other workers, or of an earlier start; see base/remote."""
        if names := [name for shard in shards for name in self.format.files(shard)]:
            remote.fetch(self.out / "images", *names)

    def _digest(self, shard):
        most = disk.MOST * len(shard)  # a file of holes is not worth hours of reading
        return outputs.digest(self.out / "images", self.format.files(shard), most)


def open_job(out) -> Job:
    """The job in a folder that `sample` wrote, by its manifest and its shards."""
    out = pathlib.Path(out)
    if not disk.there(out / "manifest.json"):
        raise errors.UsageError(f"{out} holds no manifest.json; make it with ldm_jax.sample.")
    manifest = disk.read_json(out / "manifest.json", MANIFEST)
    ends = [disk.read_json(file, RECORD)["end"] for file in (out / "shards").glob("*.json")]
    if not ends:
        raise errors.UsageError(f"{out} holds no finished samples; let ldm_jax.sample end.")
    job = Job(out, max(ends), manifest["shard_size"], manifest["format"])
    if gaps := job.missing():
        raise errors.UsageError(
            f"{out}: {len(gaps)} of {len(job.shards)} shards are missing or damaged, first images "
            f"{gaps[0].begin}..{gaps[0].end - 1}; run ldm_jax.sample again."
        )
    return job


def work(job, worker: tuple[int, int], draw, rows, batch_size: int) -> tuple[int, dict]:
    """Draws what is missing of a worker's shards and writes it, the writing beside the drawing.

    Args:
      worker: (k, n) draws every n-th shard from the k-th on.
      draw: (first index, count) -> uint8 [count, h, w, 3] on the host, the device drained.
      rows: (index) -> dict, what is known of an image.

    Returns:
      How many images those were, and the seconds that it took: {"draw": of all batches, "write": of
      all shards}, with the number of "batches".

    Raises:
      Preempted: SIGTERM came; the finished shards are on disk.
    """
    todo = job.missing(*worker)
    job.forget(todo)
    count, done, written = sum(map(len, todo)), 0, None
    progress = progress_lib.Progress(0, count, unit="image")
    clocks = {"draw": 0.0, "write": 0.0, "batches": 0}

    def write(shard, images):
        begin = time.monotonic()
        job.write(shard, images, [rows(i) for i in range(shard.begin, shard.end)])
        clocks["write"] += time.monotonic() - begin

    with preempt.preemption() as requested, concurrent.futures.ThreadPoolExecutor(1) as writer:
        for shard in todo:
            images = None
            for begin in range(shard.begin, shard.end, batch_size):
                if requested(0):
                    raise errors.Preempted(
                        f"stopped after {done} images: finished shards are kept; start again with "
                        "the same arguments to go on."
                    )
                start, at = time.monotonic(), begin - shard.begin
                batch = draw(begin, batch_size)[: shard.end - begin]
                clocks["draw"] += time.monotonic() - start
                clocks["batches"] += 1
                done += len(batch)
                if images is None:
                    images = np.empty((len(shard), *batch.shape[1:]), batch.dtype)
                images[at : at + len(batch)] = batch
                progress.update(done)
            if written:
                written.result()  # raises what went wrong there; and no more than two are in memory
            written = writer.submit(write, shard, images)
        if written:
            written.result()
    progress.close()
    return count, clocks
