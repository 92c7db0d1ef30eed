"""What the denoiser learns and how, one choice at a time at equal FLOPs (docs/ablation.md).

    python -m ldm_jax.sweep --sweep=configs/sweeps/objectives.py:shapes --workdir=runs/objectives

Presets: shapes (two CPU cores; the quickstart's shapes and first stage), photos32 and photos
(photographs of 32 and 64 pixels with their classes; both want --config.data.path=DIR,
--config.data.source=tar where it is no folder, and
--config.evaluate.samples="('--weights=FILE',)" for fd_mobilenet), debug (a minute or two).

--config.axes="prediction=eps,v; latents" takes some of the axes and of their values, the baseline
first; --config.design=grid takes every combination.
"""

from configs import base, quickstart
from configs import debug as pocket
from configs import photos as photographs
from configs.sweeps import downsampling
from configs.sweeps.base import sweep
from ldm_jax.base import config as config_lib

PROCESS, OPTIM = "ldm.process", "ldm.optim.denoiser"
AXES = {
    "prediction": {
        "v": {f"{PROCESS}.prediction": "v"},
        "eps": {f"{PROCESS}.prediction": "eps"},
        "flow": {f"{PROCESS}.prediction": "flow", f"{PROCESS}.schedule": "rectified"},
    },
    "density": {"uniform": {}, "logit-normal": {f"{PROCESS}.density": "logit_normal"}},
    "optimizer": {  # Adam with the recipe's rate
        "adamw": {f"{OPTIM}.name": "adamw"},
        "muon": {f"{OPTIM}.name": "muon", f"{OPTIM}.lr": 0.02, f"{OPTIM}.ns_steps": 3},
    },
    "latents": {"scale": {}, "per-channel": {"ldm.latents.per_channel": True}},
}


def transformers(width, heads, *, dit, uvit, patches, position_std=0.02) -> dict:
    """The values of an axis: the recipe's UNet, DiTs to which the class is added, and a U-ViT, of
    the last of the patches, for which the class is a token.

    dit, uvit: their depths, which should make them as large as the UNet. position_std: U-ViT's.
    """
    token = dict(name="class", num_classes=-1, width=width)
    sizes = dict(width=width, heads=heads)
    each = {
        f"dit-p{p}": base.dit(depth=dit, patch=p, qk_norm=True, rope=True, **sizes) for p in patches
    }
    own = dict(depth=uvit, patch=patches[-1], conv_out=True, position_std=position_std)
    each[f"uvit-p{patches[-1]}"] = base.uvit(**sizes, **own)
    place = lambda model: "tokens" if model["name"] == "uvit" else "vector"
    return {"unet": {}} | {
        label: {"ldm.model": model, "ldm.conditioners": {"class": token | {"place": place(model)}}}
        for label, model in each.items()
    }


def get_config(arg=None):
    presets = dict(shapes=shapes, photos32=photos32, photos=photos)
    return config_lib.variants(arg, **presets, debug=debug)


def _star(f, first_stage, ldm, axes=AXES):
    config = sweep({f: first_stage}, {f: ldm}, axes)
    config.design = "star"
    config.points = 2
    return config


def shapes():
    """Coloured shapes at 32x32; 27 denoisers of 500 to 750 steps, by Adam 2e-3 or Muon 0.02."""
    axes = AXES | {"network": transformers(192, 6, dit=6, uvit=8, patches=(1, 2), position_std=1.0)}
    config = _star(4, quickstart.first_stage(), quickstart.brief(), axes)
    config.seeds = (0, 1, 2)
    config.budget.amount = 1e13
    config.sampling.update(num=512, batch_size=64, steps=(25,), curve=25, flags=("--guidance=2",))
    return config


def photos32():
    """Photographs at 32x32; the first stage and the denoiser of f = 4 in docs/ablation.md."""
    config = downsampling.photos32()
    network = {"network": transformers(112, 4, dit=5, uvit=6, patches=(1, 2))}
    config.f, config.axes, config.design = (4,), tuple((AXES | network).items()), "star"
    config.first_stages.f4.steps.update(total=600, eval=200, checkpoint=200)
    config.plateau.doublings, config.seed_first_stages = 0, False
    config.budget.amount = 4e12
    config.points = 3
    return config


def photos():
    """Photographs at 64x64; a first stage that starts from its data, denoisers of 10.9M."""
    first, ldm = photographs.first_stage(), photographs.ldm()
    ldm.batch_size = 16
    axes = AXES | {"network": transformers(256, 8, dit=10, uvit=14, patches=(2,))}
    config = _star(4, first, ldm, axes)
    config.seeds = (0, 1, 2)
    config.data = dict(source="folder", path="")
    config.budget.amount = 4e13
    config.sampling.update(num=512, batch_size=64, steps=(25,), curve=25, flags=("--guidance=1.5",))
    return config


def debug():
    """Networks too small to be of use, f = 2, two axes."""
    first, ldm = pocket.first_stage(), pocket.ldm()
    first.loss.disc_weight = 0.0
    first.steps.total = 4
    ldm.model.update(mult=(1,), attention=(), head_channels=0, heads=1, groups=4)
    prediction = {label: AXES["prediction"][label] for label in ("v", "flow")}
    axes = {"prediction": prediction, "optimizer": AXES["optimizer"]}
    config = _star(2, first, ldm, axes)
    config.seeds = (0, 1)
    config.budget.update(amount=1e9, max_steps=20)
    config.sampling.update(num=16, batch_size=8, steps=(2,), curve=2)
    config.encode.update(batch_size=16, shard_size=32)
    return config
