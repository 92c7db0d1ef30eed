"""LDM-4, FFHQ 256, unconditional (Tab. 12; official ffhq256).

    python -m ldm_jax.train --config=configs/ldm_ffhq.py --workdir=RUN \\
        --config.first_stage=VQ_F4_RUN --config.data.path=IMAGES

Paper: FID 4.98, precision 0.73, recall 0.50 with 200 DDIM steps, eta 1; 26 V100-days (Tab. 18).
"""

from configs import paper


def get_config(arg=None):
    config = paper.ldm("configs/vq_f4.py", batch_size=42, lr=8.4e-5, steps=635_000)
    config.sample.update(eta=1.0)
    return config
