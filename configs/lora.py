"""An adapter of any second stage: few weights, learnt from few pictures; its own stay as they are.

    python -m ldm_jax.train --config=configs/lora.py:BASE --workdir=RUN \\
        --config.data.source=tar --config.data.path=PICTURES
    python -m ldm_jax.sample --run=RUN --out=DIR --num=16 --prompts="..."
    python -m ldm_jax.sample --run=BASE --adapters=RUN:0.7,OTHER:0.5 --out=DIR --num=16

BASE is a run; its averaged weights are adapted. docs/adapters.md says which kernels are by default,
and how to merge and to export what was learnt. Steps and learning rate are for 20 pictures.
"""

from ldm_jax.base import errors
from ldm_jax.base import record as record_lib
from ldm_jax.runs import kinds


def get_config(arg=None):
    """arg: the run that is adapted."""
    if not arg:
        raise errors.UsageError("configs/lora.py:RUN needs the run that is adapted as RUN.")
    config = record_lib.Record(arg).config
    kinds.expect(config, "diffuse", arg)
    with config.unlocked():
        config.init_from, config.init_grow = "", False
        config.adapt.update(name="lora", base=arg)
        config.latents.cache = ""
        config.data.holdout = 0.05
        config.batch_size = 8
        config.steps.update(total=500, eval=250, checkpoint=250, log=50)
        config.eval.update(records=8, batch_size=8)
        config.optim.denoiser.update(lr=1e-3, schedule="constant", warmup=20, ema=0.99, clip=1.0)
    return config
