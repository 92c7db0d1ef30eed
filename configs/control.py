"""A ControlNet of any second stage with a UNet: pictures follow edges, or maps; the base stays.

    python -m ldm_jax.train --config=configs/control.py:BASE --workdir=RUN
    python -m ldm_jax.train --config=configs/control.py:BASE --workdir=RUN \\
        --config.data.source=folder --config.data.path=PHOTOS
    python -m ldm_jax.sample --run=RUN --out=DIR --num=16 --hints=PICTURES

BASE is a run; its averaged weights are frozen. --config.conditioners.control.hint=map follows the
semantic maps of the data in the place of the edges of its pictures. docs/control.md has figures.
"""

from configs import base
from ldm_jax.base import errors
from ldm_jax.base import record as record_lib
from ldm_jax.runs import codecs, kinds

WIDTHS = (16, 32, 96, 256)  # of the hint's network, as published for f = 8; the last one repeats


def get_config(arg=None):
    """arg: the run that is controlled."""
    if not arg:
        raise errors.UsageError("configs/control.py:RUN needs the run that is controlled as RUN.")
    config = record_lib.Record(arg).config
    kinds.expect(config, "diffuse", arg)
    halvings = codecs.open_codec(config.first_stage).f.bit_length()
    widths = (*WIDTHS, *WIDTHS[-1:] * halvings)[:halvings]
    with config.unlocked():
        config.init_from, config.init_grow = "", False
        config.adapt.update(name="control", base=arg)
        own = dict(name="control", hint="edges", width=config.model.width, widths=widths)
        config.conditioners.control = own
        config.sample.conditioning_scale = 1.0
        config.latents.cache = ""
        config.steps.update(total=2_000, eval=500, checkpoint=500, log=50)
        config.optim.denoiser = base.optimizer(lr=1e-4, warmup=100, ema=0.999, clip=1.0)
    return config
