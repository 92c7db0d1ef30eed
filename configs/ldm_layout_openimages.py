"""LDM-4, layout to image, OpenImages 256 (Tab. 9, 15; official layout2img-openimages256).

    python -m ldm_jax.train --config=configs/ldm_layout_openimages.py --workdir=RUN \\
        --config.first_stage=VQ_F4_RUN --config.data.path=IMAGES

Records need boxes with names (docs/data.md). Paper: FID 32.02, IS 15.92 with 200 DDIM steps. One
attention head, as Tab. 15 has it; the yaml's head channels of 32 came to be obeyed later.
"""

from configs import paper


def get_config(arg=None):
    config = paper.ldm("configs/vq_f4.py", batch_size=24, lr=4.8e-5, steps=4_400_000)
    config.model.update(width=128, mult=(1, 2, 3, 4), attention=(8, 4, 2), transformer_depth=3)
    config.model.update(cross_attention=True, heads=1, head_channels=0, remat=True)
    config.conditioners = {"layout": dict(name="layout", width=512, depth=16)}
    config.process.update(beta_end=0.0205)
    config.loss.update(distance="l1")
    return config
