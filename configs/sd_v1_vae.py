"""Stable Diffusion v1's autoencoder: kl_f8, whose latents the denoiser sees times 0.18215.

    python -m ldm_jax.train --config=configs/sd_v1_vae.py --workdir=RUN \\
        --config.data.path=IMAGES

Reconstruction FID on COCO-val at 256 pixels (model card of sd-vae-ft): 4.99; with the decoder
fine-tuned 4.42 (ft-EMA), 4.70 (ft-MSE).
"""

from configs import kl_f8


def get_config(arg=None):
    return kl_f8.get_config(arg)
