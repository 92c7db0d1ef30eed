"""LDM-4, CelebA-HQ 256, unconditional (Tab. 12; official celeba256).

    python -m ldm_jax.train --config=configs/ldm_celebahq.py --workdir=RUN \\
        --config.first_stage=VQ_F4_RUN --config.data.path=IMAGES

Paper: FID 5.11, precision 0.72, recall 0.49 with 500 DDIM steps; 14.4 V100-days (Tab. 18).
"""

from configs import paper


def get_config(arg=None):
    config = paper.ldm("configs/vq_f4.py", batch_size=48, lr=9.6e-5, steps=410_000)
    config.sample.update(steps=500)
    return config
