"""VQ first stage, f = 16, latents 16x16x8 at 256 pixels, 16384 codes (Tab. 8; official vq-f16).

    python -m ldm_jax.train --config=configs/vq_f16.py --workdir=RUN \\
        --config.data.path=IMAGES

Paper: R-FID 5.15, PSNR 20.83.
"""

from configs import paper


def get_config(arg=None):
    config = paper.vq(batch_size=14, steps=1_101_166)
    config.model.update(mult=(1, 1, 2, 2, 4), attention=(16,), z_channels=8, latent_channels=8)
    config.discriminator.layers = 2
    return config
