"""The kind of stage that trains an autoencoder."""

import pathlib

import jax
import jax.numpy as jnp

from ldm_jax.base import defaults, errors, tensorfile
from ldm_jax.metrics import linear, scores
from ldm_jax.models import discriminator, lpips, tiny  # noqa: F401  (tiny registers itself)
from ldm_jax.models.autoencoder import AUTOENCODERS
from ldm_jax.models.bottleneck import BOTTLENECKS
from ldm_jax.models.paired import Paired
from ldm_jax.models.shortcut import SHORTCUTS
from ldm_jax.nn import variables
from ldm_jax.runs import codecs, keys, kinds, opened, start
from ldm_jax.runs import frozen as frozen_lib
from ldm_jax.runs.check import divides
from ldm_jax.stages import autoencode
from ldm_jax.stages.codec import Codec
from ldm_jax.weights.readers import READERS


class AutoencodeKind(kinds.Kind):
    """Images to latents and back; `config.model` is a registered autoencoder."""

    title = "a first stage"
    player = "autoencoder"
    prefix = "r"
    judged_on = "held_out"
    keys = defaults.FirstStage

    def defaults(self):
        return defaults.first_stage()

    def declared(self, config):
        return {"model": keys.of_network(AUTOENCODERS.get(config.model.name))}

    def names(self, config):
        found = {"model.name": AUTOENCODERS, "loss.pixel_loss": autoencode.PIXEL_LOSSES}
        found |= {"loss.disc_loss": autoencode.DISCRIMINATOR_LOSSES}
        parts = {"bottleneck": BOTTLENECKS, "shortcut": SHORTCUTS}
        return found | {f"model.{k}": v for k, v in parts.items() if config.model.get(k)}

    def check(self, config, source):
        if config.encoder:
            _check_encoder(config, self.decoder(config))
        network = self.network(config)
        if BOTTLENECKS.get(network.bottleneck).entries and not network.codebook_size:
            raise errors.UsageError(
                f"config.model.codebook_size=0 with bottleneck={network.bottleneck!r}: give a "
                "codebook."
            )
        if path := config.model.get("shortcut"):
            own = self.decoder(config)
            each, channels = own.path_fold**2, own.latent_channels
            if channels % each:
                nearest = max(1, round(channels / each)) * each
                raise errors.UsageError(
                    f"config.model.latent_channels={channels} must divide by {each}, the positions "
                    f"that fold={own.fold} and shortcut={path!r} share it out to; nearest: "
                    f"{nearest}."
                )
        if config.loss.terms.get("halved"):
            f = self.network(config).f
            divides(config.data.size, 2 * f, f"twice f={f}, as config.loss.terms.halved is set")
        with errors.of("config.loss"):
            autoencode.check(autoencode.Loss(**config.loss), all(config.lpips.values()))
            self.model(config).check()
        for key, weights in config.lpips.items() if config.loss.perceptual_weight else ():
            with errors.of(f"config.lpips.{key}"):
                tensorfile.find(weights)

    def divisor(self, config):
        return self.network(config).f, "the downsampling factor f of config.model"

    def network(self, config):
        """The autoencoder, a Linen module; with config.encoder, a Paired one."""
        if config.encoder:
            encoder = codecs.open_codec(config.encoder, "config.encoder").model
            return Paired(encoder, self.decoder(config))
        return _made(config, **config.model)

    def decoder(self, config):
        """The autoencoder as a decoder of latents that another one has quantised, if any does."""
        free = {"bottleneck": "none"} if "bottleneck" in config.model else {}
        return _made(config, **dict(config.model) | free)

    def stage(self, config, frozen):
        return self.model(config, frozen).stage()

    def model(self, config, frozen=None, measure=None) -> autoencode.Autoencode:
        """frozen: {name: weights, or their shapes}; LPIPS is measured where it is among them.

        measure: of start.measure.
        """
        dtype, perceive, frozen = jnp.dtype(config.dtype), None, frozen or {}
        weights = frozen.get("lpips")
        if weights is not None:
            distance = lpips.LPIPS(lpips.network(weights), dtype)
            perceive = lambda params, x, y: distance.apply({"params": params}, x, y)
        return autoencode.Autoencode(
            model=self.network(config),
            loss=autoencode.Loss(**config.loss),
            discriminator=discriminator.PatchDiscriminator(**config.discriminator, dtype=dtype),
            size=config.data.size,
            encoder=frozen.get("encoder"),
            perceive=perceive,
            lpips=weights,
            scores={"psnr_db": scores.psnr, "ssim": scores.ssim},
            measure=measure,
        )

    def frozen(self, config) -> tuple[frozen_lib.Frozen, ...]:
        """LPIPS, where it has a weight in the loss; of a run that trains a decoder, the encoder."""
        return *self._lpips(config), *self._encoder(config)

    def encoder(self, config, record) -> dict:
        """{"encoder": weights} of a run that trained a decoder of another one's latents, else {}.

        Raises UsageError where they are not the weights that the run recorded.
        """
        return frozen_lib.read(self._encoder(config), record.frozen, record.shown)[0]

    def _encoder(self, config) -> tuple[frozen_lib.Frozen, ...]:
        if not (path := config.encoder):
            return ()

        def read():
            params, step = codecs.read_params(path)
            return params, {"encoder_run": path, "encoder_step": step}

        network = self.network(config).encoder
        init = lambda x: variables.initial(network, jax.random.key(0), x)["params"]
        return (
            frozen_lib.Frozen(
                name="encoder",
                key="encoder",
                given=f"config.encoder={path}",
                read=read,
                shapes=lambda: jax.eval_shape(init, self._images(config)),
            ),
        )

    def _lpips(self, config) -> tuple[frozen_lib.Frozen, ...]:
        if not config.loss.perceptual_weight:
            return ()
        files = dict(config.lpips)
        x = self._images(config)
        init = lambda x: variables.initial(lpips.LPIPS(), jax.random.key(0), x, x)
        return (
            frozen_lib.Frozen(
                name="lpips",
                key="lpips",
                given=f"config.lpips.backbone={files['backbone']}",
                read=lambda: (READERS.get("lpips")(**files), {}),
                shapes=lambda: jax.eval_shape(init, x)["params"],
            ),
        )

    def begin(self, config, source, record, cache=None):
        weights, digests = frozen_lib.read(self.frozen(config), record.frozen, record.shown)
        if digests and not record.frozen:
            record.write(frozen=digests)
        network, measure = self.network(config), None
        if config.model.get("shortcut") and not config.encoder:
            measure = lambda: start.measure(config, source, record, network)
        return self.model(config, weights, measure).stage()

    def rival(self, config):
        network = self.network(config)
        if self.codec(config).bottleneck.entries:
            return "kmeans", lambda x: linear.centres(x, network.f, network.codebook_size)
        return "components", lambda x: linear.components(x, network.f, network.latent_channels)

    def evaluated(self, config, record):
        # LPIPS may be another than the run was trained on: it measures here.
        lpips, _ = frozen_lib.read(self._lpips(config), {}, record.shown)
        return self.stage(config, lpips | self.encoder(config, record))

    def batch(self, config, cached=False):
        return {"image": self._images(config)}

    def _images(self, config):
        size = config.data.size
        return jax.ShapeDtypeStruct((config.batch_size, size, size, 3), jnp.float32)

    def codec(self, config):
        return Codec(self.network(config))

    def drawing(self, config):
        codec = self.codec(config)

        def draw(params, frozen, batch, keys):
            own = autoencode.whole(params[self.player], frozen)
            return codec.decode(own, codec.encode(own, batch["image"]))

        return draw, ()

    def open(self, record, config, ema=True, mesh=None, weaker=None, decoder=None):
        return opened.FirstStage(record, config, ema, mesh, decoder)

    def export(self, record, config, folder, ema=True):
        from ldm_jax.weights import to_diffusers

        model, params, _ = codecs.single(record.path, ema)
        how = dict(size=config.data.size)
        return to_diffusers.write_first_stage(pathlib.Path(folder), model, {"model": params}, **how)


def _made(config, name, **kwargs):
    return AUTOENCODERS.make(name, **kwargs, dtype=jnp.dtype(config.dtype))


def _check_encoder(config, decoder):
    """Raises UsageError where config.encoder is no trained first stage whose latents fit."""
    path, said = config.encoder, f"config.encoder={config.encoder}"
    codecs.check_trained(path, "config.encoder")
    if codecs.is_identity(path):
        raise errors.UsageError(f"{said} has no latents to decode: give the run of a first stage.")
    theirs = codecs.open_codec(path, "config.encoder").model
    if isinstance(theirs, Paired):
        raise errors.UsageError(
            f"{said} has no encoder of its own: give the run of its config.encoder="
            f"{keys.read(path).encoder}."
        )
    for name, what in (
        ("latent_channels", "channels in its latents"),
        ("f", "pixels on the side of a latent's position"),
        ("image_channels", "channels in its images"),
    ):
        if (its := getattr(theirs, name)) != (own := getattr(decoder, name)):
            raise errors.UsageError(
                f"{said} has {its} {what}, config.model is of {own}: they must be the same."
            )
    if config.model.get("bottleneck", theirs.bottleneck) != theirs.bottleneck:
        raise errors.UsageError(
            f"config.model.bottleneck={config.model.bottleneck!r}: the latents are those of {said},"
            f" so set it to {theirs.bottleneck!r}."
        )


kinds.KINDS.register("autoencode")(AutoencodeKind())
