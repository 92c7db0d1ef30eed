"""LDM-4, super-resolution by 4 to 256 pixels, ImageNet (Tab. 5, 15; official bsr_sr).

    python -m ldm_jax.train --config=configs/ldm_superres.py --workdir=RUN \\
        --config.first_stage=VQ_F4_RUN --config.data.path=TFDS_DIR

From 64 pixels, bicubic; LDM-BSR's degradation is
--config.conditioners.low_res.degradation=bsr_light. Paper, bicubic: FID 2.8 (val), IS 166.3, PSNR
24.4, SSIM 0.69 with 100 DDIM steps. The noise schedule and 32 channels a head are the yaml's;
Tab. 15 prints one head. Attention is at factor 8 and in the middle: the yaml's 16 is deeper than
its four levels.
"""

from configs import paper


def get_config(arg=None):
    config = paper.ldm("configs/vq_f4.py", batch_size=64, lr=6.4e-5, steps=860_000)
    config.data.update(source="tfds", name="imagenet2012", split="train", crop="random")
    config.data.update(crop_least=0.5, interpolation="area")
    config.model.update(width=160, mult=(1, 2, 2, 4), attention=(8,))
    config.conditioners = {"low_res": dict(name="image", degradation="bicubic")}
    config.process.update(beta_end=0.0155)
    config.sample.update(steps=100)
    return config
