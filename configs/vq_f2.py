"""VQ first stage, f = 2, latents 128x128x2 at 256 pixels, 2048 codes (Tab. 8).

    python -m ldm_jax.train --config=configs/vq_f2.py --workdir=RUN \\
        --config.data.path=IMAGES

Variants: n2048, and n64 with 64 codes. Paper: n2048 R-FID 0.16, PSNR 30.85; n64 R-FID 0.40, PSNR
29.13. Only the latent's shape, the codes and these figures were published: the architecture
(vq_f4 less a level), batch, length and the adversary's start are our choice.
"""

from configs import paper
from ldm_jax.base import config as config_lib


def get_config(arg=None):
    return config_lib.variants(arg, n2048=n2048, n64=lambda: n2048(codes=64))


def n2048(codes=2048):
    config = paper.vq(batch_size=8, steps=500_000)
    config.model.update(mult=(1, 2), z_channels=2, latent_channels=2, codebook_size=codes)
    config.loss.update(disc_start=0)
    return config
