"""DiT (Peebles & Xie 2023, arXiv 2212.09748): class-conditional ImageNet by a transformer.

    python -m ldm_jax.train --config=configs/dit.py:xl2 --workdir=RUN \\
        --config.first_stage=SD_VAE_RUN --config.data.path=TFDS_DIR

Variants: s, b, l or xl, and the side of a patch: 1, 2, 4 or 8 (`b4` is DiT-B/4); `tiny` for two CPU
cores. The paper, 256x256 on the latents of Stable Diffusion's autoencoder (configs/sd_v1_vae.py, f
= 8, 250 DDPM steps without guidance): XL/2 has FID-50k 19.5 after 400,000 steps and 9.62 after 7M,
2.27 with guidance 1.5; S/2 68.4, B/2 43.5, L/2 23.3 after 400,000. The official models also learn
the variance of DDPM's steps, which ours do not.
"""

from configs import base
from ldm_jax.base import config as config_lib

SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}
PATCHES = (1, 2, 4, 8)


def get_config(arg=None):
    known = {
        f"{name}{patch}": lambda size=size, patch=patch: imagenet(*size, patch)
        for name, size in SIZES.items()
        for patch in PATCHES
    }
    return config_lib.variants(arg or "xl2", **known, tiny=tiny)


def imagenet(width, depth, heads, patch):
    config = base.ldm()
    config.data.update(source="tfds", name="imagenet2012", split="train", crop="center")
    config.batch_size = 256
    config.steps.update(total=400_000, eval=50_000, checkpoint=5_000)
    config.model = base.dit(width=width, depth=depth, heads=heads, patch=patch)
    config.conditioners = _classes(width, num_classes=1000)
    config.process.update(schedule="linear", beta_start=1e-4, beta_end=0.02)
    config.latents.scale = 0.18215
    config.loss.cond_dropout = 0.1
    config.sample.update(steps=250, sampler="ddpm")
    config.optim.denoiser.update(lr=1e-4, ema=0.9999)
    config.dtype = "bfloat16"
    return config


def tiny():
    """The size of configs/quickstart.py's denoiser, for the same data and first stage."""
    from configs import quickstart

    config = quickstart.ldm()
    config.model = base.dit(width=192, depth=6, heads=6, patch=1, qk_norm=True, rope=True)
    config.conditioners = _classes(192, num_classes=-1, table_std=1.0)
    return config


def _classes(width, num_classes, table_std=0.02):
    own = dict(name="class", num_classes=num_classes, width=width, place="vector")
    return {"class": own | dict(table_std=table_std)}
