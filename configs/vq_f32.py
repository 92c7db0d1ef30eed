"""VQ first stage, f = 32, latents 8x8x16 at 256 pixels, 16384 codes (Tab. 8).

    python -m ldm_jax.train --config=configs/vq_f32.py --workdir=RUN \\
        --config.data.path=IMAGES

Variants: c16 as in Tab. 8, and c32, the 8x8x32 that Tab. 13 prints for LDM-32. Paper: R-FID
31.83, PSNR 17.45. Only the latent's shape, the codes and these figures were published: the
architecture (kl_f32's), batch and length are our choice.
"""

from configs import paper
from ldm_jax.base import config as config_lib


def get_config(arg=None):
    return config_lib.variants(arg, c16=c16, c32=lambda: c16(channels=32))


def c16(channels=16):
    config = paper.vq(batch_size=14, steps=1_000_000)
    config.model.update(mult=(1, 1, 2, 2, 4, 4), attention=(16, 32))
    config.model.update(z_channels=channels, latent_channels=channels)
    config.discriminator.layers = 2
    return config
