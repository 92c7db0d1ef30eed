"""What `config.first_stage` may name: a run, a recipe in the place of one, or the identity.

runs/kl_f4          a run: its network and its weights
configs/kl_f4.py    a recipe, for a run that is still to be trained: its network alone, which
                    is enough to build a second stage abstractly
identity            pixels (f = 1); identity:4 is the same with four channels instead of three

`config.encoder` of a first stage and `--decoder` name runs of first stages, too.
"""

from ldm_jax.base import errors, tree
from ldm_jax.base import record as record_lib
from ldm_jax.engine import snapshots
from ldm_jax.models.paired import Paired
from ldm_jax.runs import keys, kinds
from ldm_jax.stages import autoencode
from ldm_jax.stages.codec import Codec

IDENTITY = "identity"


def open_codec(first_stage: str, key: str = "config.first_stage") -> Codec:
    """The first stage of that name, without its weights. key: that names it."""
    if is_identity(first_stage):
        return Codec(None, int(str(first_stage).partition(":")[2] or 3))
    if not first_stage:
        raise errors.UsageError(
            "config.first_stage is empty: give the workdir of a trained first stage "
            f"(--config.first_stage=RUN), or {IDENTITY!r} for pixel diffusion."
        )
    config = read_config(first_stage)
    kinds.expect(config, "autoencode", f"{key}={first_stage}")
    return kinds.of(config).codec(config)


def read_config(first_stage: str):
    """The config of a run or of a recipe."""
    return (record_lib.load if is_recipe(first_stage) else keys.read)(first_stage)


def read_params(first_stage: str, ema: bool | float = True):
    """The weights that go with `open_codec`, and the training step they come from."""
    if is_identity(first_stage):
        return {}, 0
    record, config = record_lib.Record(first_stage), keys.read(first_stage)
    params, step = snapshots.read_params(record.path, ("autoencoder",), ema=ema)
    frozen = kinds.of(config).encoder(config, record)
    return autoencode.whole(params["autoencoder"], frozen), step


def with_decoder(decoder: str, codec: Codec, params, name: str) -> tuple[Codec, dict, str]:
    """A first stage that decodes by another run of one: its codec, its weights, their digest.

    decoder: the run, which was trained on latents of this first stage (config.encoder).
    codec, params, name: of the first stage that latents are of.

    Raises UsageError for a run that decodes the latents of other weights.
    """
    record, config = record_lib.Record(decoder), keys.read(decoder)
    kinds.expect(config, "autoencode", f"--decoder={decoder}")
    own, _ = snapshots.read_params(record.path, ("autoencoder",))
    own = own["autoencoder"]["model"]
    model, encoder = codec.model, params
    if isinstance(model, Paired):
        model, encoder = model.encoder, params["encoder"]
    theirs = tree.digest(own)
    if config.encoder:  # an earlier version recorded no digest
        theirs = record.frozen.get("encoder") or tree.digest(read_params(config.encoder)[0])
    if theirs != tree.digest(encoder):
        raise errors.UsageError(
            f"--decoder={decoder} decodes other latents than those of {name}: give a run that was "
            f"trained with --config.encoder={name}."
        )
    paired = Paired(model, kinds.of(config).decoder(config))
    return Codec(paired), {"encoder": encoder, "decoder": own}, tree.digest(own)


def single(first_stage: str, ema: bool | float = True):
    """(`config.model`, weights, step) of one network that does what the run does.

    Raises UsageError where its encoder and its decoder are parts of different networks.
    """
    config = keys.read(first_stage)
    params, step = read_params(first_stage, ema)
    if config.encoder:
        if (theirs := keys.read(config.encoder).model) != config.model:
            raise errors.UsageError(
                f"{first_stage} has the encoder of {config.encoder} and the decoder of another "
                f"network ({theirs.name} and {config.model.name}): diffusers has no class of both."
            )
        params = params["encoder"] | params["decoder"]
    return dict(config.model), params, step


def check_trained(first_stage: str, key: str = "config.first_stage"):
    """Raises UsageError for a recipe, which has no weights yet. key: that names it."""
    if is_recipe(first_stage):
        raise errors.UsageError(
            f"{key}={first_stage} is a recipe: train it (python -m ldm_jax.train "
            f"--config={first_stage} --workdir=RUN), then give --{key}=RUN."
        )


def is_identity(first_stage: str) -> bool:
    name, _, channels = str(first_stage).partition(":")
    return name == IDENTITY and (channels or "3").isdecimal()


def is_recipe(first_stage: str) -> bool:
    return str(first_stage).partition(":")[0].endswith(".py")
