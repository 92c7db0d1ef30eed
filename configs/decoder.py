"""A tiny decoder of the latents of a first stage, for samples in a tenth of the time.

    python -m ldm_jax.train --config=configs/decoder.py:FIRST --workdir=RUN
    python -m ldm_jax.sample --run=LDM --out=DIR --num=64 --decoder=RUN

FIRST is a run; data, image size and the weights of the losses are its own. An adversary, where
FIRST had one, begins after a quarter of the steps. Steps and learning rate are for small pictures;
see docs/first_stages.md.
"""

from ml_collections import ConfigDict

from ldm_jax.base import errors
from ldm_jax.base import record as record_lib
from ldm_jax.runs import codecs


def get_config(arg=None):
    """arg: the run of the first stage."""
    if not arg:
        raise errors.UsageError("configs/decoder.py:RUN needs the run of a first stage as RUN.")
    codec, config = codecs.open_codec(arg, "configs/decoder.py"), record_lib.read(arg)
    with config.unlocked():
        config.encoder, config.init_from, config.init_grow = arg, "", False
        patch = min(4, codec.f)
        network = dict(patch=patch, levels=(codec.f // patch).bit_length(), bound=0.0, pool=False)
        network |= dict(name="tiny", latent_channels=codec.channels, width=64, blocks=3)
        config.model = ConfigDict(network)
        config.loss.update(restart=0, latent_noise=0.2, disc_start=1_000)
        if not all(config.lpips.values()):
            config.loss.update(perceptual_weight=0.0, perceptual_crop=0)
        config.steps.update(total=4_000, eval=1_000, checkpoint=500)
        config.optim.autoencoder.update(name="muon", lr=0.02, b1=0.9, b2=0.99, weight_decay=0.0)
        config.optim.autoencoder.update(schedule="cosine", warmup=100, clip=1.0)
        config.optim.autoencoder.update(average="ema", ema=0.99)
    return config
