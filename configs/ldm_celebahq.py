"""LDM-4, CelebA-HQ 256, unconditional (Tab. 12; official celeba256).

    python -m ldm_jax.train --config=configs/ldm_celebahq.py --workdir=RUN \\
        --config.first_stage=VQ_F4_RUN --config.data.path=IMAGES

Paper: FID 5.11, precision 0.72, recall 0.49 with 500 DDIM steps; 14.4 V100-days (Tab. 18).

The variant :tpu is 256 channels wide instead of 224, in heads of 128: multiples of a TPU's matrix
unit, where the paper's widths waste a fifth of v5e and two fifths of v6e (docs/scale.md).
"""

from configs import paper
from ldm_jax.base import config as config_lib


def get_config(arg=None):
    return config_lib.variants(arg, paper=of_the_paper, tpu=tpu)


def tpu():
    config = of_the_paper()
    config.model.update(width=256, head_channels=128)
    return config


def of_the_paper():
    config = paper.ldm("configs/vq_f4.py", batch_size=48, lr=9.6e-5, steps=410_000)
    config.sample.update(steps=500)
    return config
