"""KL-regularised first stage, f = 16, latents 16x16x16 at 256 pixels (Tab. 8; official kl-f16).

    python -m ldm_jax.train --config=configs/kl_f16.py --workdir=RUN \\
        --config.data.path=IMAGES

Variants: c16, and c8 with 8 channels, of which only the figures were published. Paper: c16 R-FID
0.87, PSNR 24.08; c8 R-FID 2.63, PSNR 21.94.
"""

from configs import paper
from ldm_jax.base import config as config_lib


def get_config(arg=None):
    return config_lib.variants(arg, c16=c16, c8=lambda: c16(channels=8))


def c16(channels=16):
    config = paper.first_stage(batch_size=6, steps=442_998)
    config.model.update(mult=(1, 1, 2, 2, 4), attention=(16,))
    config.model.update(z_channels=channels, latent_channels=channels)
    return config
