"""KL-regularised first stage, f = 32, latents 8x8x64 at 256 pixels (Tab. 8; official kl-f32).

    python -m ldm_jax.train --config=configs/kl_f32.py --workdir=RUN \\
        --config.data.path=IMAGES

Variants: c64, and c16 with 16 channels, of which only the figures were published. Paper: c64
R-FID 2.04, PSNR 22.27; c16 R-FID 7.3, PSNR 20.38.
"""

from configs import paper
from ldm_jax.base import config as config_lib


def get_config(arg=None):
    return config_lib.variants(arg, c64=c64, c16=lambda: c64(channels=16))


def c64(channels=64):
    config = paper.first_stage(batch_size=6, steps=406_763)
    config.model.update(mult=(1, 1, 2, 2, 4, 4), attention=(16, 32))
    config.model.update(z_channels=channels, latent_channels=channels)
    return config
