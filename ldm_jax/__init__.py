"""Latent Diffusion Models (Rombach et al. 2022, arXiv 2112.10752) as a training system in JAX.

import ldm_jax
run = ldm_jax.load("runs/quickstart/ldm")
images = run.sample(16, steps=50, guidance=2.0, cond={"class": ids})
"""

__version__ = "0.2.0"


def load(path, ema: bool | float = True):
    """Opens a run of either stage (see ldm_jax.runs.opened).

    ema=False takes the raw weights; ema=0.07 an average of that length, of runs with average=power.
    """
    from ldm_jax.runs import opened

    return opened.load(path, ema=ema)
