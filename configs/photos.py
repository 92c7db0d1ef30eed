"""Photographs at 64x64 from a tar or a folder, f = 4: small enough for one GPU or a patient CPU.

    python -m ldm_jax.train --config=configs/photos.py:first_stage --workdir=runs/photos_f4 \\
        --config.data.source=tar --config.data.path=DIR
    python -m ldm_jax.train --config=configs/photos.py:ldm --workdir=runs/photos_ldm \\
        --config.first_stage=runs/photos_f4 --config.data.source=tar --config.data.path=DIR

The first stage starts from principal components of the photographs and trains on L1 by Muon.
--config.loss.perceptual_weight=1 adds LPIPS, by its weights in config.lpips, and
--config.loss.disc_weight=0.1 --config.loss.disc_start=600 a patch discriminator. The second stage
is conditioned on the data's classes where it has any. docs/results.md says what both reach on 3,670
photos of flowers.
"""

from configs import base
from ldm_jax.base import config as config_lib


def get_config(arg=None):
    """first_stage or ldm (which wants --config.first_stage=RUN)."""
    return config_lib.variants(arg, first_stage=first_stage, ldm=ldm)


def _photos(config):
    config.data.update(source="folder", size=64, threads=2)
    config.eval.update(records=256, batch_size=32)
    return config


def first_stage():
    config = _photos(base.first_stage())
    config.batch_size = 16
    config.steps.update(total=1_200, log=50, eval=200, checkpoint=200)
    config.model.update(width=16, mult=(1, 2, 4), blocks=1, mid_attention=False)
    config.model.update(z_channels=4, latent_channels=4, posterior_logvar=-6.0, shortcut="linear")
    config.discriminator.update(width=16, layers=2)
    config.loss.update(perceptual_weight=0.0, disc_weight=0.0, kl_weight=0.05)
    config.optim.autoencoder.update(name="muon", lr=0.02, b1=0.9, b2=0.99)
    config.optim.autoencoder.update(schedule="cosine", warmup=50, ema=0.99)
    config.optim.discriminator.update(lr=2e-4)
    return config


def ldm():
    config = _photos(base.ldm())
    config.batch_size = 32
    config.steps.update(total=10_000, log=50, eval=2_000, checkpoint=500)
    config.latents.batches = 32
    config.model.update(width=64, mult=(1, 2, 3), blocks=1, attention=(2, 4), head_channels=32)
    config.model.update(cross_attention=True, groups=16)
    config.conditioners = base.class_condition(width=128)
    config.process.prediction = "v"
    config.loss.cond_dropout = 0.1
    config.sample.update(steps=50, guidance=2.0)
    config.optim.denoiser.update(lr=5e-4, schedule="cosine", warmup=200, clip=1.0, ema=0.999)
    return config
