"""A student that draws in one to four calls what its teacher, any second stage, draws in dozens.

    python -m ldm_jax.train --config=configs/student.py:TEACHER --workdir=RUN
    python -m ldm_jax.sample --run=RUN --out=DIR --num=64 --steps=2

TEACHER is a run that predicts v, x0 or flow. The student starts from its average and learns its
guidance, --config.distil.guidance or that of the teacher's config.sample, for good: a student is
drawn from with guidance 1. With --config.distil.guidance=1,8 it learns every guidance from 1 to 8
and is told which when it draws, sample --guidance=3, with no second row for it. Steps and learning
rate are for small networks; 1e-4 suits 50M parameters and more.
"""

from ldm_jax.base import errors
from ldm_jax.base import record as record_lib
from ldm_jax.runs import kinds


def get_config(arg=None):
    """arg: the run of the teacher."""
    if not arg:
        raise errors.UsageError("configs/student.py:RUN needs the run of the teacher as RUN.")
    config = record_lib.Record(arg).config
    kinds.expect(config, "diffuse", arg)
    with config.unlocked():
        config.init_from, config.init_grow = arg, False
        config.distil.update(method="consistency", teacher=config.distil.teacher or arg)
        config.loss.cond_dropout = 0.0
        config.loss.terms = dict.fromkeys(config.loss.terms, 0.0)
        config.sample.update(sampler="consistency", spacing="exact", steps=2, eta=0.0, guidance=1.0)
        config.sample.update(rescale=0.0, interval=())
        config.steps.update(total=2_000, eval=500, checkpoint=500)
        config.optim.denoiser.update(lr=3e-4, schedule="cosine", warmup=100, ema=0.999, clip=1.0)
    return config
