"""VQ first stage, f = 4, latents 64x64x3 at 256 pixels, 8192 codes (Tab. 8; official vq-f4).

    python -m ldm_jax.train --config=configs/vq_f4.py --workdir=RUN \\
        --config.data.path=IMAGES

Variants: n8192, and n256 with 256 codes, of which only the figures were published. Paper: n8192
R-FID 0.58, PSNR 27.43, 29 V100-days (Tab. 18); n256 R-FID 0.47, PSNR 26.43.
"""

from configs import paper
from ldm_jax.base import config as config_lib


def get_config(arg=None):
    return config_lib.variants(arg, n8192=n8192, n256=lambda: n8192(codes=256))


def n8192(codes=8192):
    config = paper.vq(batch_size=8, steps=533_066)
    config.model.update(mult=(1, 2, 4), z_channels=3, latent_channels=3, codebook_size=codes)
    config.loss.update(disc_start=0)
    return config
