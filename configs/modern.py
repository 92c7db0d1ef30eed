"""The paper's two stages on photographs, with what this project measured to be better since.

    python -m ldm_jax.train --config=configs/modern.py:first_stage --workdir=runs/modern_f4 \\
        --config.data.source=folder --config.data.path=DIR
    python -m ldm_jax.train --config=configs/modern.py:ldm --workdir=runs/modern \\
        --config.first_stage=runs/modern_f4 --config.data.source=folder --config.data.path=DIR

It is configs/photos.py, whose first stage starts from its data and trains by Muon, with a second
stage that learns rectified flow in the place of v on the paper's schedule. docs/objectives.md holds
the measurements, at a small size, and says what was tried and is not here.
"""

from configs import photos
from ldm_jax.base import config as config_lib


def get_config(arg=None):
    """first_stage or ldm (which wants --config.first_stage=RUN)."""
    return config_lib.variants(arg, first_stage=photos.first_stage, ldm=ldm)


def ldm():
    config = photos.ldm()
    config.process.update(prediction="flow", schedule="rectified")
    return config
