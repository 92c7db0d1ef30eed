"""LDM-8, LSUN-Churches 256, unconditional (Tab. 12; official lsun_churches256).

    python -m ldm_jax.train --config=configs/ldm_lsun_churches.py --workdir=RUN \\
        --config.first_stage=KL_F8_RUN --config.data.path=TFDS_DIR

Paper: FID 4.02, precision 0.64, recall 0.52 with 200 DDIM steps; 18 V100-days (Tab. 18). The
length is Tab. 12's; Tab. 18 says 410k.
"""

from configs import paper


def get_config(arg=None):
    config = paper.ldm("configs/kl_f8.py", batch_size=96, lr=5e-5, steps=500_000)
    config.latents.scale = 0.0  # KL: measured
    config.data.update(source="tfds", name="lsun/church_outdoor", split="train", flip=True)
    config.model.update(width=192, mult=(1, 2, 2, 4, 4), attention=(1, 2, 4, 8))
    config.model.update(heads=8, head_channels=0, scale_shift=True, resblock_updown=True)
    config.process.update(beta_end=0.0155)
    config.loss.update(distance="l1")
    config.optim.denoiser.update(warmup=10_000, start=1e-6)
    return config
