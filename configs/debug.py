"""Seconds on any machine: the whole path of both stages on networks too small to be of use.

    python -m ldm_jax.train --config=configs/debug.py:first_stage --workdir=/tmp/debug/first_stage
    python -m ldm_jax.train --config=configs/debug.py:ldm --workdir=/tmp/debug/ldm \\
        --config.first_stage=/tmp/debug/first_stage

For trying a change, a mesh or a launcher; variants: first_stage (KL and GAN), vq, ldm.
"""

from configs import base
from ldm_jax.base import config as config_lib


def get_config(arg=None):
    """first_stage, vq or ldm (which wants --config.first_stage=RUN)."""
    return config_lib.variants(arg, first_stage=first_stage, vq=vq, ldm=ldm)


def _tiny(config):
    config.data.update(size=16, count=64, holdout=0.25, threads=1)
    config.batch_size = 8
    config.steps.update(total=20, log=5, eval=10, checkpoint=5)
    config.eval.update(records=16, batch_size=16)
    return config


def first_stage():
    config = _tiny(base.first_stage())
    config.model.update(width=8, mult=(1, 2), blocks=1, mid_attention=False)
    config.model.update(z_channels=2, latent_channels=2, codebook_size=16)
    config.discriminator.update(width=8, layers=1)
    config.loss.update(perceptual_weight=0.0, disc_start=5)
    config.optim.autoencoder.update(lr=1e-3, ema=0.9)
    return config


def vq():
    config = first_stage()
    config.model.bottleneck = "vq"
    return config


def ldm():
    config = _tiny(base.ldm())
    config.latents.batches = 2
    config.model.update(width=16, mult=(1, 2), blocks=1, attention=(2,), head_channels=8)
    config.model.update(cross_attention=True)
    config.conditioners = base.class_condition(width=8)
    config.process.prediction = "v"
    config.loss.cond_dropout = 0.1
    config.sample.update(steps=4, guidance=2.0)
    config.optim.denoiser.update(lr=1e-3, ema=0.99)
    return config
