"""U-ViT (Bao et al. 2023, arXiv 2209.12152): class-conditional ImageNet by tokens and long skips.

    python -m ldm_jax.train --config=configs/uvit.py:h2 --workdir=RUN \\
        --config.first_stage=SD_VAE_RUN --config.data.path=TFDS_DIR

Variants: s, m, l or h, and the side of a patch, 2 or 4 (`l2` is U-ViT-L/2); `tiny` for two CPU
cores. The official models, 256x256 on the latents of Stable Diffusion's autoencoder
(configs/sd_v1_vae.py, f = 8), DPM-Solver in 50 steps, guidance 1.4: L/2 has FID-50k 3.40 after
300,000 steps and H/2 2.29 after 500,000.
"""

from configs import base
from ldm_jax.base import config as config_lib

SIZES = {"s": (512, 12, 8), "m": (768, 16, 12), "l": (1024, 20, 16), "h": (1152, 28, 16)}
STEPS = {"h": 500_000}  # the others: 300,000


def get_config(arg=None):
    known = {
        f"{name}{patch}": lambda name=name, patch=patch: imagenet(name, patch)
        for name in SIZES
        for patch in (2, 4)
    }
    return config_lib.variants(arg or "h2", **known, tiny=tiny)


def imagenet(name, patch):
    config, (width, depth, heads) = base.ldm(), SIZES[name]
    config.data.update(source="tfds", name="imagenet2012", split="train", crop="center", flip=True)
    config.batch_size = 1024
    config.steps.update(total=STEPS.get(name, 300_000), eval=50_000, checkpoint=5_000)
    sizes = dict(width=width, depth=depth, heads=heads, patch=patch, conv_out=name != "h")
    config.model = base.uvit(**sizes, time_offset=1, remat=True)
    config.conditioners = {"class": dict(name="class", num_classes=1000, width=width)}
    config.conditioners["class"].update(table_std=0.02)
    config.process.update(schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    config.latents.scale = 0.18215
    config.loss.cond_dropout = 0.15
    config.sample.update(steps=50, sampler="dpmpp_2m", guidance=1.4)
    config.optim.denoiser.update(lr=2e-4, warmup=5000, b1=0.99, b2=0.99)
    config.optim.denoiser.update(weight_decay=0.03, ema=0.9999)
    config.dtype = "bfloat16"
    return config


def tiny():
    """The size of configs/quickstart.py's denoiser, for the same data and first stage."""
    from configs import quickstart

    config = quickstart.ldm()
    sizes = dict(width=192, depth=8, heads=6, patch=2, conv_out=True)
    config.model = base.uvit(**sizes, position_std=1.0)  # as so brief a training needs
    config.conditioners = {"class": dict(name="class", num_classes=-1, width=192)}
    return config
