"""Retrieval-augmented LDM-16 (KL), 768 pixels (Blattmann et al. 2022; official 768x768).

    python -m ldm_jax.train --config=configs/ldm_rdm_768.py --workdir=RUN \\
        --config.first_stage=KL_F16_RUN --config.data.path=TARS

Records need `tokens`, CLIP embeddings [21, 768] of the image and its 20 neighbours. A preliminary
model: no figure was published, nor batch and length, which are our choice.
"""

from configs import paper


def get_config(arg=None):
    config = paper.ldm("configs/kl_f16.py", batch_size=128, lr=1e-4, steps=500_000)
    config.latents.scale = 0.22765929
    config.data.update(source="tar", size=768)
    config.model.update(width=448, mult=(1, 2, 3, 4), attention=(4, 2, 1))
    config.model.update(cross_attention=True, head_channels=32, remat=True)
    config.conditioners = {"tokens": dict(name="tokens", length=21, width=768)}
    config.process.update(beta_end=0.015)
    config.loss.update(cond_dropout=0.1)
    config.sample.update(steps=50, guidance=5.0)
    return config
