"""Keys that do nothing with the others chosen are refused as flags, and said where a flag made
them so."""

import pathlib

import pytest

from configs import debug
from ldm_jax.base import config as config_lib
from ldm_jax.base import errors
from ldm_jax.runs import data, idle

DEBUG = pathlib.Path(__file__).resolve().parent.parent / "configs" / "debug.py"


@pytest.mark.parametrize(
    ("variant", "flag", "makes_it_do"),
    [
        ("ldm", {"loss.gamma": "2"}, {"loss.weight": "min_snr"}),
        ("ldm", {"loss.cap": "9"}, {"loss.weight": "v"}),
        ("ldm", {"loss.logvar_features": "4"}, {"loss.learn_logvar": "True"}),
        ("ldm", {"distil.intervals": "7"}, {"distil.method": "consistency"}),
        ("ldm", {"adapt.rank": "2"}, {"adapt.name": "lora"}),
        ("ldm", {"latents.scale": "1", "latents.batches": "3"}, {"latents.scale": "0"}),
        ("ldm", {"model.remat_saves": "products"}, {"model.remat": "True"}),
        ("ldm", {"sample.guidance": "1", "sample.rescale": "0.5"}, {"sample.guidance": "2"}),
        ("ldm", {"track.project": "x"}, {"track.name": "wandb"}),
        ("ldm", {"optim.denoiser.start": "0.5"}, {"optim.denoiser.warmup": "9"}),
        ("ldm", {"checkpoints.snapshots": "3"}, {"optim.denoiser.average": "power"}),
        ("ldm", {"data.source": "tar", "data.count": "9"}, {"data.source": "scenes"}),
        ("vq", {"loss.kl_weight": "1"}, {"model.bottleneck": "kl"}),
        ("first_stage", {"loss.beta": "0.5"}, {"model.bottleneck": "vq"}),
        ("first_stage", {"loss.codebook_weight": "2"}, {"model.bottleneck": "lfq"}),
        ("first_stage", {"loss.latent_noise": "0.5"}, {"encoder": "RUN"}),
        ("first_stage", {"lpips.backbone": "vgg16"}, {"loss.perceptual_weight": "1"}),
        ("first_stage", {"loss.disc_weight": "0", "discriminator.layers": "2"},
         {"loss.disc_weight": "1"}),
    ],
)  # fmt: skip
def test_a_flag_is_refused_where_it_does_nothing_and_only_there(variant, flag, makes_it_do):
    load = lambda flags: config_lib.load(f"{DEBUG}:{variant}", flags)
    key = list(flag)[-1]
    with pytest.raises(errors.UsageError, match=rf"^--config\.{key}=.* nothing .*: leave it out"):
        idle.refuse(load(flag), flag)
    idle.refuse(load(flag | makes_it_do), flag | makes_it_do)
    idle.refuse(load(flag), flag.keys() - {key})


def test_what_a_flag_makes_idle_is_said_and_what_a_recipe_holds_for_later_is_not():
    assert not idle.notes(data.load(f"{DEBUG}:ldm"), debug.ldm())
    changed = data.load(f"{DEBUG}:ldm", {"data.source": "tar", "data.path": "x"})
    (line,) = idle.notes(changed, debug.ldm())
    assert "config.data.count=64 means nothing to the data source 'tar'" in line
    assert not idle.notes(changed, changed)
