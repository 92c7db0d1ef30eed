"""The f-ablation (Sec. 4.1): one second stage per downsampling factor, at about equal size.

    python -m ldm_jax.train --config=configs/ablation.py:class_f8 --workdir=RUN \\
        --config.first_stage=VQ_F8_RUN --config.data.path=TFDS_DIR
    python -m ldm_jax.train --config=configs/ablation.py:uncond_f8 --workdir=RUN \\
        --config.first_stage=VQ_F8_RUN --config.data.path=IMAGES

Variants: class_f1 .. class_f32, class-conditional ImageNet, 2M steps (Tab. 13); uncond_f1 ..
uncond_f32, CelebA-HQ, 500k steps (Tab. 14). f1 works on pixels and takes no first stage.

Paper, 100 DDIM steps: curves only (Fig. 6, 7); after 2M steps the FID of LDM-1 is 38 above
LDM-8's, and LDM-4 and LDM-8 do best overall. Batch and learning rate differ by column, as in the
paper: equal steps are not equal epochs. The noise schedule was not printed: the official configs'
is our choice.
"""

from configs import paper
from ldm_jax.base import config as config_lib

FIRST_STAGES = {
    1: "identity",
    2: "configs/vq_f2.py",
    4: "configs/vq_f4.py",
    8: "configs/vq_f8.py",
    16: "configs/vq_f16.py",
    32: "configs/vq_f32.py:c32",
}
# f: (width, mult, attention), Tab. 13; Tab. 14 differs in the width for f = 4, and its mult
SHAPES = {
    1: (192, (1, 1, 2, 2, 4, 4), (8, 16, 32)),
    2: (192, (1, 2, 2, 4, 4), (4, 8, 16)),
    4: (192, (1, 2, 3, 5), (2, 4, 8)),
    8: (256, (1, 2, 4), (1, 2, 4)),
    16: (256, (1, 2, 4), (1, 2, 4)),
    32: (256, (1, 2, 4), (1, 2, 4)),
}
# f: (batch, learning rate)
CLASS = {
    1: (7, 4.9e-5),
    2: (9, 6.3e-5),
    4: (40, 8e-5),
    8: (64, 6.4e-5),
    16: (112, 4.5e-5),
    32: (112, 4.5e-5),
}
UNCOND = {
    1: (9, 9e-5),
    2: (11, 1.1e-4),
    4: (48, 9.6e-5),
    8: (96, 9.6e-5),
    16: (128, 1.3e-4),
    32: (128, 1.3e-4),
}


def get_config(arg=None):
    known = {f"class_f{f}": lambda f=f: class_conditional(f) for f in CLASS}
    known |= {f"uncond_f{f}": lambda f=f: unconditional(f) for f in UNCOND}
    return config_lib.variants(arg or "class_f8", **known)


def class_conditional(f: int):
    """Tab. 13: one head, one class token of width 512."""
    config = _column(f, *CLASS[f], steps=2_000_000)
    config.data.update(source="tfds", name="imagenet2012", split="train", crop="random")
    config.model.update(cross_attention=True, heads=1, head_channels=0)
    config.conditioners = {"class": dict(name="class", num_classes=1000, width=512)}
    return config


def unconditional(f: int):
    """Tab. 14: 32 channels a head."""
    config = _column(f, *UNCOND[f], steps=500_000)
    if f == 4:
        config.model.update(width=224, mult=(1, 2, 3, 4))
    return config


def _column(f, batch_size, lr, steps):
    config = paper.ldm(FIRST_STAGES[f], batch_size, lr, steps)
    width, mult, attention = SHAPES[f]
    config.model.update(width=width, mult=mult, attention=attention)
    config.sample.update(steps=100)
    return config
