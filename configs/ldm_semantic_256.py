"""LDM-4, semantic maps to landscapes, 256 pixels (Sec. 4.3.2; Tab. 15).

    python -m ldm_jax.train --config=configs/ldm_semantic_256.py --workdir=RUN \\
        --config.first_stage=VQ_F4_RUN --config.data.path=IMAGES

Records need maps of 182 labels (COCO-Stuff's; docs/data.md). No figure was published. The
architecture is the official 512 config's; batch, rate and length are Tab. 15's, which prints
f = 8 for it. Attention is in the middle only: the yaml's factors 32, 16, 8 are deeper than its
three levels.
"""

from configs import paper


def get_config(arg=None):
    config = paper.ldm("configs/vq_f4.py", batch_size=48, lr=4.8e-5, steps=360_000)
    config.model.update(width=128, mult=(1, 4, 8), attention=(), heads=8, head_channels=0)
    config.conditioners = {"map": dict(name="rescaler", stages=2, classes=182, channels=3)}
    config.process.update(beta_end=0.0205)
    config.loss.update(distance="l1")
    return config
