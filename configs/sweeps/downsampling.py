"""The ablation over f (Rombach et al. 2022, Sec. 4.1): docs/ablation.md.

    python -m ldm_jax.sweep --sweep=configs/sweeps/downsampling.py:tiny --workdir=runs/ablation

Presets: photos32 and photos (two CPU cores, hours: photographs at 32x32 and 64x64; both want
--config.data.path=DIR and --config.evaluate.*, docs/ablation.md), tiny (two CPU cores, about an
hour: coloured shapes at 32x32), small (one GPU), paper (the columns of Tab. 13; wants
--config.first_stages.* and --config.ldms.* with data), debug (seconds).
"""

from configs import ablation, debug, photos, quickstart, tasks
from configs.sweeps.base import sweep
from ldm_jax.base import config as config_lib

F = (1, 2, 4, 8, 16, 32)


def get_config(arg=None):
    presets = dict(tiny=tiny, photos32=photos32, photos=photos64, small=small, paper=paper)
    return config_lib.variants(arg, **presets, debug=pocket)


# f: (latent channels, mult of the autoencoder)
SCENES_FIRST = {
    2: (2, (1, 2)),
    4: (4, (1, 2, 4)),
    8: (8, (1, 2, 4, 4)),
    16: (16, (1, 2, 4, 4, 4)),
    32: (32, (1, 2, 4, 4, 4, 4)),
}
# f: (mult, attention, batch, learning rate); as in Tab. 13, batches grow as latents shrink
SCENES_LDM = {
    1: ((1, 2, 2), (4,), 8, 1e-3),
    2: ((1, 2, 2), (4,), 16, 1.4e-3),
    4: ((1, 2), (1, 2), 32, 2e-3),
    8: ((1, 2), (1, 2), 64, 2e-3),
    16: ((1, 2), (1, 2), 256, 2e-3),
    32: ((1,), (1,), 512, 2e-3),
}


def tiny():
    """Coloured shapes at 32x32; latents from 32x32 to 1x1, denoisers of 1.08M parameters."""
    config = sweep({f: _scenes_first(f) for f in F[1:]}, {f: _scenes_ldm(f) for f in F})
    config.parameters = 1_080_000
    config.budget.update(amount=4e12, max_steps=4_000)
    config.points = 3
    config.sampling.update(num=160, batch_size=80, steps=(10, 25, 50), curve=25)
    config.sampling.flags = ("--guidance=4",)
    return config


def _scenes_first(f):
    config = tasks.first_stage()
    channels, mult = SCENES_FIRST[f]
    config.model.update(mult=mult, z_channels=channels, latent_channels=channels)
    config.steps.update(total=300, eval=300)
    return config


def _scenes_ldm(f):
    config = quickstart.brief()
    mult, attention, config.batch_size, lr = SCENES_LDM[f]
    config.model.update(mult=mult, attention=attention, heads=1, head_channels=0, groups=4)
    config.optim.denoiser.lr = lr
    return config


# f: (mult, attention, batch) at 32x32 pixels
PHOTOS_LDM = {
    1: ((1, 2, 2), (4,), 16),
    2: ((1, 2, 2), (2, 4), 32),
    4: ((1, 2, 2), (1, 2, 4), 64),
    8: ((1, 2), (1, 2), 128),
    16: ((1, 2), (1, 2), 256),
    32: ((1,), (1,), 256),
}


def photos32():
    """Photographs at 32x32; latents from 32x32 to 1x1, denoisers of 1.1M parameters."""
    return _photos(32, PHOTOS_LDM, amount=8e12)


def photos64():
    """Photographs at 64x64; latents from 64x64 to 2x2."""
    shapes = {
        f: (mult, attention, max(8, b // 2)) for f, (mult, attention, b) in PHOTOS_LDM.items()
    }
    shapes[1] = ((1, 1, 2, 2), (8,), 8)
    shapes[32] = ((1, 2), (1, 2), 128)
    return _photos(64, shapes, amount=3.2e13)


def _photos(size, shapes, amount):
    """The study of docs/ablation.md: first stages until they are flat, five budgets, three seeds.

    Learning rates stay constant, so that a checkpoint is what a training of its length would end
    with.
    """
    first_stages, ldms = {}, {}
    for f, (channels, mult) in SCENES_FIRST.items():
        config = first_stages[f] = photos.first_stage()
        config.model.update(mult=mult, z_channels=channels, latent_channels=channels)
        config.model.shortcut = "levels" if f >= 8 else "linear"
        config.steps.update(total=300, eval=300, checkpoint=300)
        config.data.threads = 1
    for f, (mult, attention, batch) in shapes.items():
        config = ldms[f] = photos.ldm()
        config.batch_size = batch
        config.model.update(mult=mult, attention=attention, heads=1, head_channels=0, groups=4)
        config.optim.denoiser.update(lr=1e-3, schedule="constant", warmup=20, ema=0.998)
        config.data.threads = 1
    config = sweep(first_stages, ldms)
    config.data = dict(source="folder", path="", size=size)
    config.parameters = 1_100_000
    config.seeds, config.seed_first_stages = (0, 1, 2), True
    config.plateau.update(doublings=3, gain_db=0.5)
    config.budget.update(amount=amount)
    config.points, config.spacing = 5, "doubling"
    config.sampling.update(num=512, batch_size=64, steps=(25,), curve=25, flags=("--guidance=1.5",))
    return config


def small():
    """64x64, your own images by --config... or the scenes; denoisers of 30M parameters."""
    mults = {2: (1, 2), 4: (1, 2, 4), 8: (1, 2, 4, 4), 16: (1, 1, 2, 2, 4), 32: (1, 1, 2, 2, 4, 4)}
    first_stages, ldms = {}, {}
    for f, mult in mults.items():
        first_stages[f] = photos.first_stage()
        channels = SCENES_FIRST[f][0]
        first_stages[f].model.update(mult=mult, z_channels=channels, latent_channels=channels)
        first_stages[f].model.shortcut = "levels" if f >= 8 else "linear"
    shapes = {
        1: ((1, 1, 2, 2), (8,), 32),
        2: ((1, 2, 2), (4,), 64),
        4: ((1, 2, 2), (2, 4), 128),
        8: ((1, 2), (1, 2), 256),
        16: ((1, 2), (1, 2), 256),
        32: ((1, 2), (1, 2), 256),
    }
    for f, (mult, attention, batch) in shapes.items():
        ldms[f] = photos.ldm()
        ldms[f].batch_size = batch
        ldms[f].model.update(mult=mult, attention=attention, heads=1, head_channels=0, groups=8)
    for config in (*first_stages.values(), *ldms.values()):
        config.dtype = "bfloat16"
        config.data.update(source="scenes", count=50_000, size=64, flip=False)
    config = sweep(first_stages, ldms)
    config.parameters = 30_000_000
    config.budget.update(amount=3e16)
    config.sampling.update(num=2_048, batch_size=256, flags=("--guidance=2",))
    return config


def paper():
    """Tab. 13, 2M steps each, 5,000 samples: with its data in every config's `data` group."""
    first_stages = {f: config_lib.load(ablation.FIRST_STAGES[f]) for f in F[1:]}
    ldms = {f: ablation.class_conditional(f) for f in F}
    for config in ldms.values():
        config.data.crop = "center"  # a latent cache holds one crop of an image
    config = sweep(first_stages, ldms)
    config.bottlenecks = ("vq",)
    config.budget.update(kind="steps", amount=2_000_000)
    config.points = 10
    return config


def pocket():
    """Seconds: configs/debug.py's networks at f = 1 and 2."""
    first = debug.first_stage()
    first.loss.disc_weight = 0.0
    ldms = {1: debug.ldm(), 2: debug.ldm()}
    for f, config in ldms.items():
        config.model.update(mult=(1,), attention=(), head_channels=0, heads=1, groups=4)
        config.batch_size = 8 * f
    first.steps.total = 4
    config = sweep({2: first}, ldms)
    config.parameters, config.tolerance = 24_000, 0.15
    config.budget.update(amount=4e8, max_steps=8)
    config.points = 2
    config.sampling.update(num=16, batch_size=8, steps=(2, 3), curve=2)
    config.encode.update(batch_size=16, shard_size=32)
    return config
