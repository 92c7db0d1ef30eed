"""LDM-8, layout to image, COCO 256, from scratch (Tab. 9, 15).

    python -m ldm_jax.train --config=configs/ldm_layout_coco.py --workdir=RUN \\
        --config.first_stage=VQ_F8_RUN --config.data.path=IMAGES

Records need boxes with names (docs/data.md). Paper: FID 42.06 with 100 DDIM steps.
No config was published: Tab. 15 has the sizes, batch, rate, dropout and length; the noise
schedule and the loss are layout_openimages', our choice. Tab. 15's 345M parameters could not be
reproduced.
"""

from configs import paper


def get_config(arg=None):
    config = paper.ldm("configs/vq_f8.py", batch_size=48, lr=4.8e-5, steps=170_000)
    config.model.update(width=192, mult=(1, 2, 4), attention=(4, 2, 1), transformer_depth=2)
    config.model.update(cross_attention=True, heads=1, head_channels=0, dropout=0.1)
    config.conditioners = {"layout": dict(name="layout", width=512, depth=16)}
    config.process.update(beta_end=0.0205)
    config.loss.update(distance="l1")
    config.sample.update(steps=100)
    return config
