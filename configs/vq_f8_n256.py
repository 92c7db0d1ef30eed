"""VQ first stage, f = 8, latents 32x32x4 at 256 pixels, 256 codes (Tab. 8; official vq-f8-n256).

    python -m ldm_jax.train --config=configs/vq_f8_n256.py --workdir=RUN \\
        --config.data.path=IMAGES

Paper: R-FID 1.49, PSNR 22.35.
"""

from configs import paper


def get_config(arg=None):
    config = paper.vq(batch_size=10, steps=1_608_649)
    config.model.update(mult=(1, 2, 2, 4), attention=(8,), z_channels=4, latent_channels=4)
    config.model.update(codebook_size=256)
    return config
