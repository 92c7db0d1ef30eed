"""A first stage beside its rival: the PSNR of principal components, or of k-means of patches."""

import numpy as np

from ldm_jax.engine import hosts, loop
from ldm_jax.metrics import scores
from ldm_jax.runs import data as data_lib
from ldm_jax.runs import kinds, start


def psnr_db(config, source, count: int) -> dict:
    """{"components_psnr_db": mean over held-out records}; for codebooks "kmeans_psnr_db".

    As many components of patches of f x f pixels as the latent has channels, or as many centres as
    the codebook has entries, are fitted on training images. count: held-out records.
    """
    kind = kinds.of(config)
    name, fit = kind.rival(config)
    fitted, found = fit(start.images(config, source, kind.codec(config).f)), []
    records = data_lib.held_out(config, source)
    share = dict(host=0, hosts=1)
    for batch in data_lib.held_out_batches(config, records, ("image",), count, **share):
        x = batch["image"][batch["real"] > 0]
        found.append(scores.psnr(x, np.clip(fitted.reconstruct(x), -1, 1).astype(np.float32)))
    return {f"{name}_psnr_db": float(np.concatenate(found).mean())}


class Rival(loop.Evaluator):
    """The rival's figure beside the run's own at every evaluation; kept in the run's rival.json."""

    def __init__(self, config, source, record):
        about = {"data": source.fingerprint, "records": config.eval.records}

        def measured():
            kept = record.rival
            if not about.items() <= kept.items():
                kept = about | psnr_db(config, source, config.eval.records)
                record.write(rival=kept)
            return {name: value for name, value in kept.items() if name not in about}

        self._figures = hosts.on_first(measured, seconds=3600)

    def __call__(self, step, params, frozen):
        return {f"val/{name}": value for name, value in self._figures.items()}
