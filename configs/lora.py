"""An adapter of any second stage: few weights, learnt from few pictures; its own stay as they are.

    python -m ldm_jax.train --config=configs/lora.py:BASE,PICTURES --workdir=RUN
    python -m ldm_jax.train --config=configs/lora.py:BASE,PICTURES,DRAWN --workdir=RUN
    python -m ldm_jax.sample --run=RUN --out=DIR --num=16 --prompts="..."
    python -m ldm_jax.sample --run=BASE --adapters=RUN:0.7,OTHER:0.5 --out=DIR --num=16

BASE is a run; its averaged weights are adapted. PICTURES is a folder. Half of each batch are other
pictures, which the adapter leaves as BASE draws them: BASE's own data, or the folder DRAWN of what
`sample --run=BASE` drew. BASE alone trains on all of BASE's data, or on what --config.data says.

docs/adapters.md says which kernels are adapted, and how to merge and to export what was learnt.
Steps and learning rate are for 20 pictures.
"""

from ml_collections import ConfigDict

from ldm_jax.base import errors
from ldm_jax.base import record as record_lib
from ldm_jax.runs import data, kinds


def get_config(arg=None):
    """arg: the run that is adapted, the pictures to learn, pictures that it drew."""
    base, *folders = (arg or "").split(",")
    if not base or len(folders) > 2 or not all(folders):
        raise errors.UsageError(
            f"configs/lora.py:{arg or ''} must be RUN, RUN,PICTURES or RUN,PICTURES,DRAWN: the run "
            "that is adapted, and folders."
        )
    config = record_lib.Record(base).config
    kinds.expect(config, "diffuse", base)
    with config.unlocked():
        config.init_from, config.init_grow = "", False
        config.adapt.update(name="lora", base=base)
        config.latents.cache = ""
        config.data.holdout = 0.05
        config.batch_size = 8
        config.steps.update(total=500, eval=250, checkpoint=250, log=50)
        config.eval.update(records=8, batch_size=8)
        config.optim.denoiser.update(lr=1e-3, schedule="constant", warmup=20, ema=0.99, clip=1.0)
        if folders:
            _keep(config, *folders)
    return config


def _keep(config, pictures, drawn=""):
    """Half of a batch to learn, half to keep."""
    if drawn:
        old = dict(source="folder", path=drawn)
    else:
        own = data.arguments(config.data)
        own.pop("size", None)  # which is that of all parts
        old = dict(own, source=config.data.source)
    new = dict(source="folder", path=pictures)
    parts = {name: dict(part, weight=1.0) for name, part in (("new", new), ("old", old))}
    config.data.source, config.data.mix = "mix", ConfigDict(parts)
    config.adapt.update(keep="old", targets=(".",))
    config.batch_size *= 2
    config.steps.update(total=600, eval=600, checkpoint=300)
    config.optim.denoiser.update(lr=3e-3, schedule="cosine")
