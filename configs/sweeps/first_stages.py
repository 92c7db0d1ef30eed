"""What a kind of first stage is worth to the denoiser, at equal FLOPs (docs/first_stages.md).

    python -m ldm_jax.sweep --sweep=configs/sweeps/first_stages.py:photos32 --workdir=RUNS \\
        --config.data.path=DIR --config.evaluate.first_stage="('--weights=FILE',)" \\
        --config.evaluate.samples="('--weights=FILE', '--metrics=fd,prc,dc')"

Presets: photos32 (two CPU cores, hours: photographs at 32x32, f = 4), debug (a minute).
"""

from configs.sweeps import downsampling
from ldm_jax.base import config as config_lib

MODEL, LOSS, OPTIM = "first_stage.model", "first_stage.loss", "first_stage.optim.autoencoder"
KINDS = {
    "start": {},  # from principal components, by Muon
    "plain": {f"{MODEL}.shortcut": "", f"{OPTIM}.name": "adam", f"{OPTIM}.lr": 2e-3},
    "halved": {f"{LOSS}.terms": {"halved": 0.25}},
    "turned": {f"{LOSS}.terms": {"turned": 0.25}},
    "noise": {f"{MODEL}.bottleneck": "noise", f"{MODEL}.posterior_logvar": -2.3},
}


def get_config(arg=None):
    return config_lib.variants(arg, photos32=photos32, debug=debug)


def photos32():
    """The first stage and the denoiser of f = 4 in docs/ablation.md; three seeds of both."""
    config = downsampling.photos32()
    config.f, config.bottlenecks, config.axes = (4,), (), (("kind", KINDS),)
    config.first_stages.f4.steps.update(total=600, eval=200, checkpoint=200)
    config.plateau.doublings = 0
    config.budget.amount = 4e12
    config.points = 3
    return config


def debug():
    """Networks too small to be of use, f = 2."""
    config = downsampling.pocket()
    config.f = (2,)
    config.axes = (("kind", {kind: KINDS[kind] for kind in ("start", "halved")}),)
    return config
