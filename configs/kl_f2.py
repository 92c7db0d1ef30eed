"""KL-regularised first stage, f = 2, latents 128x128x2 at 256 pixels (Tab. 8).

    python -m ldm_jax.train --config=configs/kl_f2.py --workdir=RUN \\
        --config.data.path=IMAGES

Paper: R-FID 0.086, PSNR 32.47. Only the latent's shape and these figures were published: the
architecture (kl_f4 less a level), batch and length are our choice.
"""

from configs import paper


def get_config(arg=None):
    config = paper.first_stage(batch_size=8, steps=200_000)
    config.model.update(mult=(1, 2), z_channels=2, latent_channels=2)
    return config
