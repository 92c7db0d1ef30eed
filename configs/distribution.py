"""A student of few calls whose pictures are distributed as its teacher's (distribution matching).

    python -m ldm_jax.train --config=configs/student.py:TEACHER --workdir=STUDENT
    python -m ldm_jax.train --config=configs/distribution.py:STUDENT --workdir=RUN
    python -m ldm_jax.sample --run=RUN --out=DIR --num=64 --steps=1

It starts from a student that configs/student.py made, and has its teacher; a plain second stage in
its place is start and teacher at once. One step in three trains the student, every step its critic.
Steps and learning rates are for small networks; 2e-6, and one step in five, suit 300M parameters
(Yin et al. 2024).
"""

from configs import base, student
from ldm_jax.base import errors


def get_config(arg=None):
    """arg: the run to start from."""
    if not arg:
        raise errors.UsageError("configs/distribution.py:RUN needs the run of a student as RUN.")
    config = student.get_config(arg)
    learns = dict(lr=1e-4, schedule="cosine", warmup=50, clip=1.0)
    with config.unlocked():
        given = {key: config.distil[key] for key in ("teacher", "guidance", "weaker")}
        config.distil = base.ldm().distil
        config.distil.update(given, method="distribution", critic_steps=3, critic_first=80)
        config.steps.update(total=600, eval=300, checkpoint=300)
        config.optim.denoiser.update(learns, ema=0.98)
        config.optim.critic = base.optimizer(**learns | {"lr": 3e-4})
    return config
