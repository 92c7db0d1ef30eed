"""LDM-4 (VQ without attention), inpainting, Places (Tab. 7; official inpainting_big).

    python -m ldm_jax.train --config=configs/ldm_inpaint.py --workdir=RUN \\
        --config.first_stage=VQ_F4_NOATTN_RUN --config.data.path=IMAGES

Holes are drawn: boxes, strokes and half planes in equal shares (config.conditioners.hole.holes).
Paper, all samples: FID 1.50, LPIPS 0.137. No training code was published: batch and length are
those of Tab. 15's smaller model, the holes and the base rate of 1e-6 times that batch are our
choice; its multiplier is the yaml's: to 0.1 in 1000 steps, then a cosine to 0.0001 at step 50k.
"""

from configs import paper


def get_config(arg=None):
    config = paper.ldm("configs/vq_f4_noattn.py", batch_size=128, lr=1.28e-5, steps=360_000)
    config.model.update(width=256, mult=(1, 2, 3, 4), attention=(8, 4, 2))
    config.model.update(heads=8, head_channels=0, resblock_updown=True)
    config.conditioners = {"hole": dict(name="inpaint", holes=dict(box=1.0, stroke=1.0, half=1.0))}
    config.process.update(beta_end=0.0205)
    config.loss.update(distance="l1")
    config.optim.denoiser.update(warmup=1000, start=0.01)
    config.optim.denoiser.update(schedule="cosine", floor=0.001, length=50_000)
    return config
