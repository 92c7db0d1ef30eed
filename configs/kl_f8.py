"""KL-regularised first stage, f = 8, latents 32x32x4 at 256 pixels (Tab. 8; official kl-f8).

    python -m ldm_jax.train --config=configs/kl_f8.py --workdir=RUN \\
        --config.data.path=IMAGES

Paper: R-FID 0.90, PSNR 24.19.
"""

from configs import paper


def get_config(arg=None):
    config = paper.first_stage(batch_size=4, steps=246_803)
    config.model.update(mult=(1, 2, 4, 4), z_channels=4, latent_channels=4)
    return config
