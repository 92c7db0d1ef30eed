"""LDM-4, LSUN-Bedrooms 256, unconditional (Tab. 12; official lsun_beds256).

    python -m ldm_jax.train --config=configs/ldm_lsun_bedrooms.py --workdir=RUN \\
        --config.first_stage=VQ_F4_RUN --config.data.path=TFDS_DIR

Paper: FID 2.95, precision 0.66, recall 0.48 with 200 DDIM steps, eta 1; 60 V100-days (Tab. 18).
"""

from configs import paper


def get_config(arg=None):
    config = paper.ldm("configs/vq_f4.py", batch_size=48, lr=9.6e-5, steps=1_900_000)
    config.data.update(source="tfds", name="lsun/bedroom", split="train", flip=True)
    config.sample.update(eta=1.0)
    return config
