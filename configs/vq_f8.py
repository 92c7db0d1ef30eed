"""VQ first stage, f = 8, latents 32x32x4 at 256 pixels, 16384 codes (Tab. 8; official vq-f8).

    python -m ldm_jax.train --config=configs/vq_f8.py --workdir=RUN \\
        --config.data.path=IMAGES

Paper: R-FID 1.14, PSNR 23.07, 66 V100-days (Tab. 18).
"""

from configs import paper


def get_config(arg=None):
    config = paper.vq(batch_size=10, steps=971_043)
    config.model.update(mult=(1, 2, 2, 4), attention=(8,), z_channels=4, latent_channels=4)
    config.loss.update(disc_start=1, disc_weight=0.6)
    config.discriminator.layers = 2
    return config
