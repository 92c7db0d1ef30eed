"""LDM-4, semantic maps to landscapes, 512 pixels (Sec. 4.3.2; official semantic_synthesis512).

    python -m ldm_jax.train --config=configs/ldm_semantic_512.py --workdir=RUN \\
        --config.first_stage=VQ_F4_RUN --config.data.path=IMAGES

configs/ldm_semantic_256.py on larger images. No figure was published, nor a length: the latter is
ours.
"""

from configs import ldm_semantic_256


def get_config(arg=None):
    config = ldm_semantic_256.get_config(arg)
    config.data.size = 512
    config.batch_size = 8
    config.optim.denoiser.update(lr=8e-6)
    return config
