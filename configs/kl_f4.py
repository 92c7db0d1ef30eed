"""KL-regularised first stage, f = 4, at 256x256 (Rombach et al. 2022, tab. 8; official kl_f4 config).

    python -m ldm_jax.train --config=configs/kl_f4.py --workdir=DIR \\
        --config.data.source=folder --config.data.path=IMAGES \\
        --config.lpips.backbone=vgg16-397923af.pth --config.lpips.heads=vgg.pth

Paper, trained on OpenImages and measured on ImageNet-val: R-FID 0.27, PSNR 27.53.
"""

from configs import base


def get_config(arg=None):
    config = base.first_stage()
    config.batch_size = 12
    config.accumulate = 1
    config.dtype = "bfloat16"
    config.steps.total = 500_000
    config.data.update(source="folder", crop="random", workers=8)
    return config
