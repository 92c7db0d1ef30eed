"""A first stage beside its rival: the PSNR of principal components, or of k-means of patches."""

import numpy as np

from ldm_jax.engine import hosts, loop
from ldm_jax.metrics import scores
from ldm_jax.runs import data as data_lib
from ldm_jax.runs import kinds, start


def psnr_db(config, source, record, records=None) -> dict:
    """{"components_psnr_db": mean over held-out records}; for codebooks "kmeans_psnr_db".

    As many components of patches of f x f pixels as the latent has channels, or as many centres as
    the codebook has entries, fitted on training images. A run keeps the figure in rival.json.

    Args:
      records: the held-out records; config.eval.records of them are reconstructed.
    """
    name, fit = kinds.of(config).rival(config)
    records = data_lib.held_out(config, source) if records is None else records
    about = {"name": name, "images": start.IMAGES, "records": config.eval.records}
    about |= {"data": source.fingerprint}
    kept = record.rival
    if {key: kept.get(key) for key in about} != about:
        rival, found = fit(start.images(config, source)), []
        batches = data_lib.held_out_batches(config, records, ("image",), host=0, hosts=1)
        for batch in batches:
            x = batch["image"][batch["real"] > 0]
            found.append(scores.psnr(x, np.clip(rival.reconstruct(x), -1, 1).astype(np.float32)))
        kept = about | {"psnr_db": float(np.concatenate(found).mean())}
        record.write(rival=kept)
    return {f"{name}_psnr_db": kept["psnr_db"]}


class Rival(loop.Evaluator):
    """The rival's figure beside the run's own, at every evaluation."""

    def __init__(self, config, source, record):
        self._measured = hosts.on_first(lambda: psnr_db(config, source, record), seconds=3600)

    def __call__(self, step, params, frozen):
        return {f"val/{name}": value for name, value in self._measured.items()}
