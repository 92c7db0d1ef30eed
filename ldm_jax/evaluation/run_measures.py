"""What can be measured of a run, with any weights that it has."""

import functools

import jax
import numpy as np

from ldm_jax.base import errors, raster, shard, tensorfile
from ldm_jax.evaluation import distances as distances_lib
from ldm_jax.evaluation import held_out as held_out_lib
from ldm_jax.evaluation import protocol, rival
from ldm_jax.evaluation import reference as reference_lib
from ldm_jax.metrics import latents as latents_lib
from ldm_jax.runs import codecs, kinds
from ldm_jax.runs import data as data_lib
from ldm_jax.stages import autoencode


class RunMeasures:
    """The stage's measures of all held-out records and, with weights of features, of images.

    The images of a first stage are reconstructions of those records; a stage that draws does so
    under the conditions of training records.

    Args:
      record: of the run.
      make_request: () -> measures.Request, or None where no figures of images are wanted.
      lpips: () or the two files of LPIPS.
      decoder: the run of a first stage that decodes what a second stage draws; "": its own does.

    Attributes:
      count: held-out records.
      measurement: for the protocol.
      about: what a summary says beside the figures.
    """

    def __init__(self, record, make_request, lpips=(), decoder=""):
        config, self._record, self._kind = record.config, record, kinds.of(record.config)
        if lpips:
            _measure_lpips(config, lpips)
        self._config, self._request = config, make_request()
        self._mesh = shard.make_mesh()
        shard.check_batch(config.eval.batch_size, self._mesh, key="config.eval.batch_size")
        self._source = data_lib.open_source(config.data)
        self._records = data_lib.held_out(config, self._source)
        self.count, size = len(self._records), (config.data.size,) * 2
        how = config.data.interpolation
        self._origin = protocol.origin(self._records, self.count, size, how)
        own = None if self._kind.draws else self._request
        self.measurement, self._drawn = _measurement(config, self._origin, own), None
        self.about, self._decoding = {}, {}
        if self._kind.draws and self._request:
            self._request.check("reference", "features", "logits")
            given = self._request, config, self._source, self._mesh
            codec = self._decode_by(decoder) if decoder else None
            self._drawn = distances_lib.Distances(*given, codec)
            self.measurement["drawn"] = self._drawn.measurement | self.about

    def __call__(self, params) -> tuple[dict, dict]:
        """(figures, what else a summary says) of these weights, {player: tree}."""
        given = jax.device_put((params, self._stage.frozen), shard.replicated(self._mesh))
        figures = {}
        for name, (mean, error) in self._held_out.measure(*given).items():
            figures |= {name: mean, f"{name}_std": error}
        if self._kind.draws:
            if self._drawn:
                frozen = given[1] | jax.device_put(self._decoding, shard.replicated(self._mesh))
                figures |= self._drawn.figures(given[0], frozen)
            return figures, {}
        own = autoencode.whole(params[self._kind.player], self._stage.frozen)
        own = self._kind.codec(self._config), own
        about, images = _of_first_stage(*own, self._batches, self._origin, self._request)
        return figures | images, about

    def _decode_by(self, decoder: str):
        """The codec of that run's decoder, whose weights are kept beside the stage's."""
        name = self._config.first_stage
        codec, params = self._kind.codec(self._config), self._stage.frozen["first_stage"]
        codec, params, digest = codecs.with_decoder(decoder, codec, params, name)
        self._decoding["first_stage"] = params
        self.about["decoder"] = {"run": decoder, "weights": digest}
        return codec

    def rival(self) -> dict:
        """The figure that a first stage should beat by far; {} where there is none."""
        if not self._kind.rival(self._config):
            return {}
        return rival.psnr_db(self._config, self._source, self.count)

    @functools.cached_property
    def _stage(self):
        return self._kind.judged(self._config, self._record)

    @functools.cached_property
    def _held_out(self):
        return held_out_lib.HeldOutRecords(self._stage, self._batches, self._mesh)

    def _batches(self):
        fields = self._stage.fields
        return data_lib.held_out_batches(self._config, self._records, fields, self.count)


def _measurement(config, origin, request) -> dict:
    """How a run's own measures and, with a request, figures of reconstructions are taken."""
    n, size = origin["records"], origin["size"]
    found = {"n": n, "size": size, "reference": origin}
    if request:
        request.check("reference", "features")
        request.warn(n, n)
        found = request.measurement(n, size, origin)
    files = [file for file in config.get("lpips", {}).values() if file]
    lpips = [tensorfile.digest(file)[:16] for file in files]
    return found | {"scores": "of unrounded floats", "lpips": lpips}


def _of_first_stage(codec, params, batches, origin, request) -> tuple[dict, dict]:
    """Statistics of the latents of images and, with a request, figures of reconstructions.

    batches: () -> {"image": [b, h, w, 3], "real": [b]}. origin: what the images are.
    """
    latents, counts = [], []

    @jax.jit
    def measure(params, images):
        moments = codec.moments(params, images)
        z, noise = codec.latents(moments), codec.bottleneck.variance(moments)
        pixels = raster.to_uint8(codec.decode(params, z))
        return z, noise, codec.counts(params, z), pixels

    def originals():
        for batch in batches():
            yield np.asarray(raster.to_uint8(batch["image"])), batch["real"]

    def reconstructions():
        for batch in batches():
            z, noise, used, pixels = jax.device_get(measure(params, batch["image"]))
            real = batch["real"] > 0
            latents.append(latents_lib.Latents.of(z[real], noise[real]))
            counts.append(used[real].sum(0))
            yield pixels, batch["real"]

    figures = {}
    if request:
        reference = reference_lib.Reference.of(request.gather(originals()), origin)
        figures = request.figures(request.gather(reconstructions()), reference, "r")
    else:
        for _ in reconstructions():
            pass
    codebook = latents_lib.codebook(sum(counts)) if len(counts[0]) else {}
    return functools.reduce(latents_lib.Latents.merge, latents).summary() | codebook, figures


def _measure_lpips(config, files):
    if len(files) != 2:
        raise errors.UsageError(f"--lpips={','.join(files)}: give two files, BACKBONE,HEADS.")
    with config.unlocked():
        config.lpips.update(dict(zip(("backbone", "heads"), files)))
        # The stage measures LPIPS where it has a weight, whatever that is.
        config.loss.perceptual_weight = config.loss.perceptual_weight or 1.0
    autoencode.check(autoencode.Loss(**config.loss), True)
