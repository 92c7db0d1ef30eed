"""TAEF2 (madebyollin/taesd, MIT): a published tiny first stage, f = 8, 32 channels, 2.7M weights.

    python -m ldm_jax.convert taef2 --checkpoint=FOLDER --out=RUN

makes a run of the two published files, taef2_encoder.pth and taef2_decoder.pth: cheap latents for a
second stage (--config.first_stage=RUN), or previews. They give 27.2, 28.0 and 33.4 dB PSNR on
Kodak's pictures 1, 5 and 23 (docs/parity.md). Training it from scratch is our choice of losses:

    python -m ldm_jax.train --config=configs/taef2.py --workdir=DIR \\
        --config.data.source=folder --config.data.path=IMAGES
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg=None):
    config = base.first_stage()
    config.model = ConfigDict(
        dict(name="tiny", width=64, latent_channels=32, levels=4, blocks=3, pool=True)
    )
    config.loss.update(perceptual_weight=0.0, disc_weight=0.0)
    config.optim.autoencoder.update(lr=1e-4, ema=0.999)
    return config
