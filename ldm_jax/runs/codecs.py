"""What `config.first_stage` may name: a run, a recipe in the place of one, or the identity.

runs/kl_f4          a run: its network and its weights
configs/kl_f4.py    a recipe, for a run that is still to be trained: its network alone, which
                    is enough to build a second stage abstractly
identity            pixels (f = 1); identity:4 is the same with four channels instead of three
"""

from ldm_jax.base import errors, record
from ldm_jax.engine import snapshots
from ldm_jax.runs import kinds
from ldm_jax.stages.codec import Codec

IDENTITY = "identity"


def open_codec(first_stage: str) -> Codec:
    """The first stage of that name, without its weights."""
    if is_identity(first_stage):
        return Codec(None, int(str(first_stage).partition(":")[2] or 3))
    if not first_stage:
        raise errors.UsageError(
            "config.first_stage is empty: give the workdir of a trained first stage "
            f"(--config.first_stage=RUN), or {IDENTITY!r} for pixel diffusion."
        )
    config = (record.load if is_recipe(first_stage) else record.read)(first_stage)
    kinds.expect(config, "autoencode", f"config.first_stage={first_stage}")
    return kinds.of(config).codec(config)


def read_params(first_stage: str, ema: bool | float = True):
    """The weights that go with `open_codec`, and the training step they come from."""
    if is_identity(first_stage):
        return {}, 0
    params, step = snapshots.read_params(first_stage, ("autoencoder",), ema=ema)
    return params["autoencoder"]["model"], step


def check_trained(first_stage: str):
    """Raises UsageError for a recipe, which has no weights yet."""
    if is_recipe(first_stage):
        raise errors.UsageError(
            f"config.first_stage={first_stage} is a recipe: train it (python -m ldm_jax.train "
            f"--config={first_stage} --workdir=RUN), then give --config.first_stage=RUN."
        )


def is_identity(first_stage: str) -> bool:
    name, _, channels = str(first_stage).partition(":")
    return name == IDENTITY and (channels or "3").isdecimal()


def is_recipe(first_stage: str) -> bool:
    return str(first_stage).partition(":")[0].endswith(".py")
