"""Ten minutes on two CPU cores: coloured shapes at 32x32, f = 4, class-conditional.

    bash launch/quickstart.sh

trains both stages, samples and evaluates. Expect a held-out PSNR above 24 dB, and above 80 % of the
samples to show the shape and the colour that they were asked for.
"""

from configs import base
from ldm_jax.base import config as config_lib

STEPS = {"first_stage": 600, "ldm": 1_000}


def get_config(arg=None):
    """first_stage or ldm (which wants --config.first_stage=RUN)."""
    return config_lib.variants(arg, first_stage=first_stage, ldm=ldm)


def _scenes(config):
    config.data.size = 32
    config.data.count = 20_000
    config.data.flip = False  # the shapes are symmetric, the textures do not mind
    config.data.holdout = 0.02
    config.data.threads = 1
    config.eval.update(records=256, batch_size=64)
    return config


def first_stage():
    config = _scenes(base.first_stage())
    config.batch_size = 16
    total = STEPS["first_stage"]
    config.steps.update(total=total, log=50, eval=total // 2, checkpoint=250)
    config.model.update(width=16, mult=(1, 2, 4), blocks=1, mid_attention=False)
    # A posterior that starts narrow learns colours within hundreds of steps, not thousands.
    config.model.update(z_channels=4, latent_channels=4, posterior_logvar=-6.0)
    # The KL's weight is far above the paper's 1e-6: smooth latents are denoised after fewer steps.
    config.loss.update(perceptual_weight=0.0, disc_weight=0.0, kl_weight=0.2)
    schedule = dict(lr=2e-3, schedule="cosine", warmup=50, b1=0.9, b2=0.99, clip=0.0, ema=0.99)
    config.optim.autoencoder.update(name="adam", **schedule)
    return config


def ldm():
    config = _scenes(base.ldm())
    config.batch_size = 32
    total = STEPS["ldm"]
    config.steps.update(total=total, log=50, eval=total // 2, checkpoint=250)
    config.latents.batches = 8
    config.model.update(width=64, mult=(1, 2), blocks=1, attention=(2,), head_channels=32)
    config.model.update(cross_attention=True, groups=8)
    # Through cross-attention, as in the paper, and beside the timestep: so small a network, trained
    # so briefly, learns shapes sooner when every block hears the class.
    config.conditioners = base.class_condition(width=64)
    config.conditioners["class_vector"] = dict(
        name="class", num_classes=-1, width=4 * config.model.width, place="vector"
    )
    config.process.prediction = "v"
    config.loss.cond_dropout = 0.1
    config.sample.update(steps=25, guidance=4.0)
    config.optim.denoiser.update(lr=2e-3, schedule="cosine", warmup=100, clip=1.0, ema=0.999)
    return config
