"""A trained run as a Python object: encode, decode, denoise, sample.

    run = ldm_jax.load("runs/x")
    z = run.encode(images)
    images = run.sample(8, steps=50, guidance=2.0, cond={"class": ids})

Images are [n, h, w, 3] floats in [-1, 1]. Runs of both stages have encode and decode; a second
stage's latents are scaled (`z * scale`), a first stage's are not.
"""

from ldm_jax.base import platforms
from ldm_jax.base.record import Record
from ldm_jax.runs import first_stage, kinds, second_stage  # noqa: F401  (they register themselves)


def load(path, ema: bool = True, mesh=None, weaker=None):
    """Opens the run in `path`: a first_stage.FirstStage or a second_stage.SecondStage.

    Args:
      ema: the moving average of the weights, where the run keeps one.
      mesh: puts the weights on all its devices; batches given to the run must then divide.
      weaker: a run of the same model, less trained; guidance then leads away from it instead of
        from the null condition (autoguidance, Karras et al. 2024).
    """
    platforms.quiet_libraries()
    record = Record(path)
    config = record.config
    return kinds.of(config).open(record, config, ema, mesh, weaker)
