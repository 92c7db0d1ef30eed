"""Every task of the paper in minutes on two CPU cores: coloured shapes at 32x32, f = 4.

    python -m ldm_jax.train --config=configs/quickstart.py:first_stage \\
        --workdir=runs/tasks/first_stage
    python -m ldm_jax.train --config=configs/tasks.py:text_one --workdir=runs/tasks/text_one \\
        --config.first_stage=runs/tasks/first_stage

and likewise layout, semantic, superres, inpaint, uncond: one object in a picture, which is what
that first stage can show. text has two and wants a first stage of its own, trained on two objects
(first_stage). docs/tasks.md says how to measure each, and how to train them on data of one's own.
"""

from configs import quickstart
from ldm_jax.base import config as config_lib

WIDTH = 64  # of the UNet
TRANSFORMER = dict(width=64, depth=2, heads=4, head_width=16, vector=4 * WIDTH)
TRANSFORMER |= dict(table_std=1.0)  # officially 0.02, by which words are hardly told apart


def get_config(arg=None):
    """The first stage of text, or one task each, which want --config.first_stage=RUN."""
    return config_lib.variants(
        arg,
        first_stage=first_stage,
        text=text,
        text_one=text_one,
        layout=layout,
        semantic=semantic,
        superres=superres,
        inpaint=inpaint,
        uncond=uncond,
    )


def first_stage():
    """Four channels that start at random, by Adam.

    They say less than the quickstart's, and denoisers as brief as these learn them sooner
    (docs/results.md).
    """
    config = quickstart.first_stage()
    config.steps.update(total=600, eval=300)
    config.model.update(z_channels=4, latent_channels=4, shortcut="")
    config.loss.kl_weight = 0.2
    config.optim.autoencoder.update(name="adam", lr=2e-3)
    return config


def _task(steps: int, objects: int = 1):
    """The quickstart's second stage without its conditions, on the schedule of rectified flow.

    On the paper's, brief trainings obeyed their conditions less (docs/results.md).
    """
    config = quickstart.brief()
    config.process.schedule = "rectified"
    config.steps.update(total=steps, eval=steps // 2)
    config.data.objects = objects
    config.conditioners = dict()
    config.model.update(width=WIDTH, cross_attention=False)
    config.loss.cond_dropout = 0.0
    config.sample.guidance = 1.0
    return config


def _attended(steps: int, objects: int, guidance: float):
    """Conditions as tokens, which the network attends to, and is guided by."""
    config = _task(steps, objects)
    config.model.update(cross_attention=True, attention=(1, 2))
    config.loss.cond_dropout = 0.1
    config.sample.guidance = guidance
    return config


def text():
    """Two objects and where they are: "a red circle left of a blue square"."""
    config = _attended(steps=3_000, objects=2, guidance=2.0)
    config.process.prediction = "flow"
    config.optim.denoiser.lr = 1e-3  # with the others' 2e-3 it collapsed on the paper's schedule
    config.data.update(relations=True, combinations="seen")
    config.conditioners = _captions()
    return config


def text_one():
    """One object: "a red circle"."""
    config = _attended(steps=1_200, objects=1, guidance=4.0)
    config.conditioners = _captions()
    return config


def _captions():
    # vocab_size -1 takes the vocabulary's size, its padding and its empty caption.
    return {"text": dict(name="text", length=24, vocab_size=-1, **TRANSFORMER)}


def layout():
    """Boxes with classes, up to four."""
    config = _attended(steps=1_800, objects=1, guidance=2.0)
    # Coordinates lie on a grid of 22 x 22, for 22 = floor(sqrt(512)).
    sizes = dict(vocab_size=512, pad=511, length=4 * 3 + 2)
    config.conditioners = {"layout": dict(name="layout", **sizes, **TRANSFORMER)}
    return config


def semantic():
    """Maps of shapes and colours; label 0 is the background."""
    config = _task(steps=1_000)
    config.conditioners = {"map": dict(name="rescaler", stages=2, classes=17, channels=8)}
    return config


def superres():
    """From 8x8 to 32x32."""
    config = _task(steps=1_000)
    config.conditioners = {"low_res": dict(name="image", degradation="bicubic")}
    return config


def inpaint():
    """Holes of three kinds; their shares are keys of the config."""
    config = _task(steps=1_500)
    holes = dict(box=1.0, stroke=1.0, half=1.0)
    config.conditioners = {"hole": dict(name="inpaint", holes=holes)}
    return config


def uncond():
    """The simplest of all."""
    return _task(steps=1_000)
