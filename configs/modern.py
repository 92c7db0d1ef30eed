"""A second stage on photographs, with what this project measured to be better than the paper's.

    python -m ldm_jax.train --config=configs/photos.py:first_stage --workdir=runs/photos_f4 \\
        --config.data.source=folder --config.data.path=DIR
    python -m ldm_jax.train --config=configs/modern.py:ldm --workdir=runs/modern \\
        --config.first_stage=runs/photos_f4 --config.data.source=folder --config.data.path=DIR

It is configs/photos.py:ldm, but learns rectified flow in the place of v on the paper's schedule;
the first stage starts from its data and trains by Muon already. docs/objectives.md holds the
measurements, which are small, and says what was tried and is not here.
"""

from configs import photos
from ldm_jax.base import config as config_lib


def get_config(arg=None):
    """ldm, which wants --config.first_stage=RUN."""
    return config_lib.variants(arg, ldm=ldm)


def ldm():
    config = photos.ldm()
    config.process.update(prediction="flow", schedule="rectified")
    return config
