"""KL-regularised first stage, f = 4, latents 64x64x3 at 256 pixels (Tab. 8; official kl-f4).

    python -m ldm_jax.train --config=configs/kl_f4.py --workdir=RUN \\
        --config.data.path=IMAGES

Paper, trained on OpenImages and measured on ImageNet-val: R-FID 0.27, PSNR 27.53. The batch is
the published checkpoint's on one device; the official training config has 12, accumulated twice.
"""

from configs import paper


def get_config(arg=None):
    config = paper.first_stage(batch_size=10, steps=176_991)
    config.model.update(mult=(1, 2, 4), z_channels=3, latent_channels=3)
    return config
