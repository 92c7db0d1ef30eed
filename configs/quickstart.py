"""Eight to twelve minutes on two CPU cores: coloured shapes at 32x32, f = 4, class-conditional.

    bash launch/quickstart.sh

trains both stages, samples and evaluates. Expect a held-out PSNR above 31 dB, and above 95 % of the
samples to show the shape and the colour that they were asked for. Then

    python -m ldm_jax.train --config=configs/quickstart.py:student --workdir=runs/quickstart/student

distils its second stage in some four minutes more.
"""

from configs import base
from configs import student as students
from ldm_jax.base import config as config_lib
from ldm_jax.base import errors
from ldm_jax.base import record as record_lib

STEPS = {"first_stage": 400, "ldm": 1_800, "student": 600}
LDM = "runs/quickstart/ldm"  # where launch/quickstart.sh has it
MUON = dict(name="muon", lr=0.02)  # in the place of Adam's 2e-3: docs/results.md


def get_config(arg=None):
    """first_stage; ldm or brief, which want --config.first_stage=RUN; student, of LDM."""
    return config_lib.variants(arg, first_stage=first_stage, ldm=ldm, brief=brief, student=student)


def _scenes(config):
    config.data.size = 32
    config.data.count = 20_000
    config.data.flip = False  # the shapes are symmetric, the textures do not mind
    config.data.holdout = 0.02
    config.data.threads = 1
    config.eval.update(records=256, batch_size=64)
    return config


def first_stage():
    config = _scenes(base.first_stage())
    config.batch_size = 16
    total = STEPS["first_stage"]
    config.steps.update(total=total, log=50, eval=total, checkpoint=250)
    config.model.update(width=16, mult=(1, 2, 4), blocks=1, mid_attention=False)
    # A posterior that starts narrow learns colours within hundreds of steps, not thousands.
    # Beside a path that starts from the data, two channels say all that small shapes need. With
    # four, the KL term turned the other two into noise, which a denoiser had to learn to draw.
    config.model.update(z_channels=2, latent_channels=2, posterior_logvar=-6.0, shortcut="linear")
    # The KL's weight is far above the paper's 1e-6, so that the decoder bears what a denoiser that
    # was trained for minutes gets wrong.
    config.loss.update(perceptual_weight=0.0, disc_weight=0.0, kl_weight=0.5)
    schedule = dict(schedule="cosine", warmup=50, b1=0.9, b2=0.99, clip=0.0, ema=0.99)
    config.optim.autoencoder.update(**MUON, **schedule)
    return config


def ldm():
    config = brief()
    total = STEPS["ldm"]
    config.steps.update(total=total, eval=total)
    config.optim.denoiser.update(**MUON)
    config.optim.denoiser.ns_steps = 3
    config.sample.guidance = 2.0
    return config


def brief():
    """1,000 steps by Adam, for latents that say less (configs/tasks.py:first_stage).

    The tasks, the ablation and the tables of docs/samplers.md begin from it.
    """
    config = _scenes(base.ldm())
    config.batch_size = 32
    config.steps.update(total=1_000, log=50, eval=500, checkpoint=250)
    config.latents.batches = 8
    config.model.update(width=64, mult=(1, 2), blocks=1, attention=(2,), head_channels=32)
    config.model.update(cross_attention=True, groups=8)
    # Through cross-attention, as in the paper, and beside the timestep: so small a network, trained
    # so briefly, learns shapes sooner when every block hears the class.
    config.conditioners = base.class_condition(width=64)
    config.conditioners["class_vector"] = dict(
        name="class", num_classes=-1, width=4 * config.model.width, place="vector"
    )
    config.process.prediction = "v"
    config.loss.cond_dropout = 0.1
    config.sample.update(steps=25, guidance=4.0)
    config.optim.denoiser.update(lr=2e-3, schedule="cosine", warmup=100, clip=1.0, ema=0.999)
    return config


def student():
    """One to four calls in the place of 25 with two rows each; of another run configs/student.py.

    The teacher needs few calls itself (docs/few_steps.md): this shows how it is done, in minutes.
    """
    if not record_lib.Record(LDM).exists():
        raise errors.UsageError(
            f"{LDM}, which it distils, is not here: run bash launch/quickstart.sh first; "
            "configs/student.py:RUN distils any other second stage."
        )
    config = students.get_config(LDM)
    total = STEPS["student"]
    config.steps.update(total=total, log=50, eval=total // 2, checkpoint=total // 2)
    return config
