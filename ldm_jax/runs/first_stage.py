"""The kind of stage that trains an autoencoder, and such a run, opened."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.base import defaults, errors, shard, tree
from ldm_jax.engine import checkpoint
from ldm_jax.metrics import scores
from ldm_jax.models import lpips, tiny  # noqa: F401  (tiny registers itself)
from ldm_jax.models.autoencoder import AUTOENCODERS
from ldm_jax.models.bottleneck import BOTTLENECKS
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.runs import frozen as frozen_lib
from ldm_jax.runs import kinds
from ldm_jax.stages import autoencode
from ldm_jax.stages.codec import Codec
from ldm_jax.weights.readers import READERS


class AutoencodeKind(kinds.Kind):
    """Images to latents and back; `config.model` is a registered autoencoder."""

    title = "a first stage"
    player = "autoencoder"
    prefix = "r"
    judged_on = "held_out"

    def defaults(self):
        return defaults.first_stage()

    def check(self, config, source):
        BOTTLENECKS.get(self.network(config).bottleneck)
        _one_of("config.discriminator.norm", config.discriminator.norm, NORMS)
        autoencode.check(autoencode.Loss(**config.loss), all(config.lpips.values()))

    def divisor(self, config):
        return self.network(config).f, "the downsampling factor f of config.model"

    def network(self, config):
        """The autoencoder, a Linen module."""
        kwargs = dict(config.model)
        return AUTOENCODERS.get(kwargs.pop("name"))(**kwargs, dtype=jnp.dtype(config.dtype))

    def stage(self, config, frozen):
        return self.model(config, frozen.get("lpips")).stage()

    def model(self, config, weights=None) -> autoencode.Autoencode:
        """weights: LPIPS's, or their shapes; None measures none."""
        dtype, perceive = jnp.dtype(config.dtype), None
        if weights is not None:
            distance = lpips.LPIPS(lpips.network(weights), dtype)
            perceive = lambda params, x, y: distance.apply({"params": params}, x, y)
        return autoencode.Autoencode(
            model=self.network(config),
            loss=autoencode.Loss(**config.loss),
            discriminator=PatchDiscriminator(**config.discriminator, dtype=dtype),
            size=config.data.size,
            perceive=perceive,
            lpips=weights,
            scores={"psnr_db": scores.psnr, "ssim": scores.ssim},
        )

    def frozen(self, config) -> tuple[frozen_lib.Frozen, ...]:
        """LPIPS, where it has a weight in the loss."""
        if not config.loss.perceptual_weight:
            return ()
        files = dict(config.lpips)
        size = (1, config.data.size, config.data.size, 3)
        x = jax.ShapeDtypeStruct(size, jnp.float32)
        key = lambda: jax.random.key(0)
        return (
            frozen_lib.Frozen(
                name="lpips",
                key="lpips",
                given=f"config.lpips.backbone={files['backbone']}",
                read=lambda: (READERS.get("lpips")(**files), {}),
                shapes=lambda: jax.eval_shape(lambda x: lpips.LPIPS().init(key(), x, x), x)[
                    "params"
                ],
            ),
        )

    def frozen_shapes(self, config):
        return frozen_lib.shapes(self.frozen(config))

    def begin(self, config, source, record, cache=None):
        weights, digests = frozen_lib.read(self.frozen(config), record.frozen, record.shown)
        if digests and not record.frozen:
            record.write(frozen=digests)
        return self.stage(config, weights)

    def evaluated(self, config, record):
        # LPIPS may be another than the run was trained on: it measures here.
        return self.stage(config, frozen_lib.read(self.frozen(config), {}, record.shown)[0])

    def batch(self, config, cached=False):
        return {"image": jax.ShapeDtypeStruct(_images(config), jnp.float32)}

    def codec(self, config):
        return Codec(self.network(config))

    def drawing(self, config):
        codec = self.codec(config)

        def draw(params, frozen, batch, keys):
            own = params[self.player]["model"]
            return codec.decode(own, codec.encode(own, batch["image"]))

        return draw, ()

    def open(self, record, config, ema=True, mesh=None, weaker=None):
        return FirstStage(record, config, ema, mesh)

    def export(self, record, config, folder, ema=True):
        from ldm_jax.weights import to_diffusers

        params = checkpoint.read_params(record.path, (self.player,), ema=ema)[0][self.player]
        return to_diffusers.write_first_stage(
            pathlib.Path(folder),
            dict(config.model),
            {"model": params["model"]},
            size=config.data.size,
        )


kinds.KINDS.register("autoencode")(AutoencodeKind())


NORMS = ("batch", "group", "actnorm")


class FirstStage:
    """A trained autoencoder.

    Attributes:
      path, config, step, digest: of the run, and of the weights that were read.
      codec: the network, a stages.codec.Codec.
    """

    def __init__(self, record, config, ema=True, mesh=None):
        self.path, self.config = record.path, config
        self.codec = kinds.of(config).codec(config)
        params, self.step = checkpoint.read_params(record.path, ("autoencoder",), ema=ema)
        params = params["autoencoder"]["model"]
        self.digest = tree.digest(params)
        self._params = shard.place(params, mesh)
        self._encode, self._decode = jax.jit(self.codec.encode), jax.jit(self.codec.decode)

    def encode(self, images, key=None):
        """[n, h, w, 3] -> [n, h/f, w/f, c]: the posterior's mode, or with a key a sample of it."""
        check_divides(images, self.codec.f)
        return self._encode(self._params, jnp.asarray(images, jnp.float32), key)

    def decode(self, z):
        """[n, h/f, w/f, c] -> [n, h, w, 3], not clipped; VQ quantises here."""
        return self._decode(self._params, jnp.asarray(z, jnp.float32))


def check_divides(images, f):
    """Raises UsageError for images whose sides do not divide by f."""
    h, w = np.shape(images)[1:3]
    if h % f or w % f:
        raise errors.UsageError(
            f"Images of {h}x{w} do not divide by f={f}; crop or pad them to "
            f"{max(1, h // f) * f}x{max(1, w // f) * f}."
        )


def _images(config) -> tuple:
    return config.batch_size, config.data.size, config.data.size, 3


def _one_of(key: str, value, known):
    if value not in known:
        raise errors.UsageError(f"{key}={value!r}: use {' or '.join(map(repr, known))}.")
