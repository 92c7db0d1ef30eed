"""The kind of stage that trains an autoencoder."""

import pathlib

import jax
import jax.numpy as jnp

from ldm_jax.base import defaults, errors, values
from ldm_jax.engine import snapshots
from ldm_jax.metrics import linear, scores
from ldm_jax.models import discriminator, lpips, tiny  # noqa: F401  (tiny registers itself)
from ldm_jax.models.autoencoder import AUTOENCODERS
from ldm_jax.models.bottleneck import BOTTLENECKS
from ldm_jax.models.shortcut import SHORTCUTS
from ldm_jax.runs import frozen as frozen_lib
from ldm_jax.runs import keys, kinds, opened, start
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
        return {"model": values.declared(AUTOENCODERS.get(keys.entry(config, "model")))}

    def check(self, config, source):
        bottleneck = self.network(config).bottleneck
        if BOTTLENECKS.get(bottleneck).entries and not config.model.codebook_size:
            raise errors.UsageError(
                f"config.model.codebook_size=0 with bottleneck={bottleneck!r}: give a codebook."
            )
        if path := config.model.get("shortcut"):
            SHORTCUTS.get(path)
        if config.loss.decoder_only:
            _check_decoder_only(config)
        if config.loss.terms.get("halved"):
            f = self.network(config).f
            divides(config.data.size, 2 * f, f"twice f={f}, as config.loss.terms.halved is set")
        with errors.of("config.loss"):
            autoencode.check(autoencode.Loss(**config.loss), all(config.lpips.values()))
            self.model(config).check()

    def divisor(self, config):
        return self.network(config).f, "the downsampling factor f of config.model"

    def network(self, config):
        """The autoencoder, a Linen module."""
        kwargs = dict(config.model)
        return AUTOENCODERS.make(kwargs.pop("name"), **kwargs, dtype=jnp.dtype(config.dtype))

    def stage(self, config, frozen):
        return self.model(config, frozen.get("lpips")).stage()

    def model(self, config, weights=None, measure=None) -> autoencode.Autoencode:
        """weights: LPIPS's, or their shapes; None measures none. measure: of start.measure."""
        dtype, perceive = jnp.dtype(config.dtype), None
        if weights is not None:
            distance = lpips.LPIPS(lpips.network(weights), dtype)
            perceive = lambda params, x, y: distance.apply({"params": params}, x, y)
        return autoencode.Autoencode(
            model=self.network(config),
            loss=autoencode.Loss(**config.loss),
            discriminator=discriminator.PatchDiscriminator(**config.discriminator, dtype=dtype),
            size=config.data.size,
            perceive=perceive,
            lpips=weights,
            scores={"psnr_db": scores.psnr, "ssim": scores.ssim},
            measure=measure,
        )

    def frozen(self, config) -> tuple[frozen_lib.Frozen, ...]:
        """LPIPS, where it has a weight in the loss."""
        if not config.loss.perceptual_weight:
            return ()
        files = dict(config.lpips)
        x = self._images(config)
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

    def begin(self, config, source, record, cache=None):
        weights, digests = frozen_lib.read(self.frozen(config), record.frozen, record.shown)
        if digests and not record.frozen:
            record.write(frozen=digests)
        network, measure = self.network(config), None
        if config.model.get("shortcut"):
            measure = lambda: start.measure(config, source, record, network)
        return self.model(config, weights.get("lpips"), measure).stage()

    def rival(self, config):
        network = self.network(config)
        if self.codec(config).bottleneck.entries:
            return "kmeans", lambda x: linear.centres(x, network.f, network.codebook_size)
        return "components", lambda x: linear.components(x, network.f, network.latent_channels)

    def evaluated(self, config, record):
        # LPIPS may be another than the run was trained on: it measures here.
        return self.stage(config, frozen_lib.read(self.frozen(config), {}, record.shown)[0])

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
            own = params[self.player]["model"]
            return codec.decode(own, codec.encode(own, batch["image"]))

        return draw, ()

    def open(self, record, config, ema=True, mesh=None, weaker=None, decoder=None):
        return opened.FirstStage(record, config, ema, mesh)

    def export(self, record, config, folder, ema=True):
        from ldm_jax.weights import to_diffusers

        params = snapshots.read_params(record.path, (self.player,), ema=ema)[0][self.player]
        return to_diffusers.write_first_stage(
            pathlib.Path(folder),
            dict(config.model),
            {"model": params["model"]},
            size=config.data.size,
        )


def _check_decoder_only(config):
    """Raises UsageError where there is no encoder worth keeping, or it would not be kept."""
    if not config.init_from:
        raise errors.UsageError(
            "config.loss.decoder_only=True keeps an encoder that was trained before: give its run "
            "as --config.init_from=RUN, or set it to False."
        )
    if decay := config.optim.autoencoder.get("weight_decay"):
        raise errors.UsageError(
            f"config.optim.autoencoder.weight_decay={decay} would shrink the encoder that "
            "config.loss.decoder_only keeps: set it to 0."
        )


kinds.KINDS.register("autoencode")(AutoencodeKind())
