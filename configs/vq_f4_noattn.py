"""VQ first stage without attention, f = 4, latents 64x64x3 at 256 pixels (Tab. 8; vq-f4-noattn).

    python -m ldm_jax.train --config=configs/vq_f4_noattn.py --workdir=RUN \\
        --config.data.path=IMAGES

Its cost grows linearly with the pixels: the first stage of inpainting. Paper: R-FID 1.06, PSNR
25.21.
"""

from configs import paper


def get_config(arg=None):
    config = paper.vq(batch_size=8, steps=658_131)
    config.model.update(mult=(1, 2, 4), z_channels=3, latent_channels=3)
    config.model.update(codebook_size=8192, mid_attention=False)
    config.loss.update(disc_start=11)
    return config
