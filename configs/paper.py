"""What the recipes of the paper share (Rombach et al. 2022, arXiv 2112.10752); no recipe itself.

Learning rates are effective: the official base rate times the batch, as the official code
multiplies them on one device. With k times the batch take k times the rate, or keep both.
Weights, optimizer and losses are float32, the computation is bfloat16 (the official code computes
in float32).
"""

from configs import base


def first_stage(batch_size: int, steps: int):
    """An official first stage: OpenImages at 256 pixels, Adam at 4.5e-6 times the batch."""
    config = base.first_stage()
    config.dtype = "bfloat16"
    config.batch_size = batch_size
    config.lpips.update(backbone="vgg16", heads="lpips:vgg")
    config.steps.update(total=steps, eval=10_000, checkpoint=5_000)
    config.data.update(source="folder", crop="random", workers=8)
    for player in config.optim.values():
        player.lr = round(4.5e-6 * batch_size, 9)
    return config


def vq(batch_size: int, steps: int):
    """The same with a codebook, and the adversary as the VQ models have it."""
    config = first_stage(batch_size, steps)
    config.model.update(bottleneck="vq", codebook_size=16_384)
    config.loss.update(disc_start=250_001, disc_weight=0.75)
    return config


def ldm(first_stage: str, batch_size: int, lr: float, steps: int):
    """An official second stage: AdamW as torch has it, EMA 0.9999, DDIM with 200 steps.

    first_stage: the recipe that the paper pairs it with; training wants a run of it in its place.
    """
    config = base.ldm()
    config.dtype = "bfloat16"
    config.first_stage = first_stage
    # VQ latents have a variance near 1 and are not scaled; 0 would measure the factor.
    config.latents.scale = 1.0
    config.batch_size = batch_size
    config.steps.update(total=steps, eval=10_000, checkpoint=5_000)
    config.data.update(source="folder", flip=False, workers=8)
    config.sample.update(steps=200)
    config.optim.denoiser.update(lr=lr, weight_decay=0.01)
    return config
