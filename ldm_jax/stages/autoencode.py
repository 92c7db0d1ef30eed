"""The first stage: an autoencoder, and an adversary of patches (Rombach et al. 2022, sec. 3.1).

    autoencoder loss = reconstruction + regulariser + terms of your own + weight * adversarial
    discriminator loss = hinge or vanilla, on the same reconstruction

Both players see one forward pass of the autoencoder per step (the official code runs a second one
for the discriminator). Before step `disc_start` the adversarial terms are zero and the
discriminator rests.

A model of two networks (models.paired.Paired) trains the decoder alone, on

    encode(x) + s n,   n ~ N(0, std of the latents),   s ~ U(0, latent_noise) for each image

which is what a denoiser that errs a little draws. encode is the posterior's mode, as no more than
that is to be seen of a latent that was drawn. `frozen["encoder"]` holds the other network whole.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ldm_jax.base import errors, registry
from ldm_jax.models import parallel, shortcut
from ldm_jax.models.autoencoder import Autoencoder
from ldm_jax.models.bottleneck import BOTTLENECKS
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.models.paired import Paired
from ldm_jax.nn import variables
from ldm_jax.stages import adversary, api, terms
from ldm_jax.stages.adversary import DISCRIMINATOR_LOSSES, DISCRIMINATOR_TERMS
from ldm_jax.stages.terms import TERMS

NEAR = 0.1  # deviations of a codebook between a restarted entry and the one it is put beside
PIXEL_LOSSES = registry.Registry("pixel loss")
PIXEL_LOSSES.register("l1")(jnp.abs)
PIXEL_LOSSES.register("l2")(jnp.square)


@dataclasses.dataclass(frozen=True)
class Loss:
    """The weights of the first stage's terms; one field is one key of `config.loss`.

    kl_weight: on the KL divergence, summed over a latent; codebook_weight: on the VQ loss, whose
      `beta` and `legacy_vq` are those of bottleneck.vq_loss. The bottleneck takes its own.
    restart: steps after which an entry of the codebook that was nearest to no latent is moved to
      where others are in use; 0: never.
    perceptual_weight: on LPIPS, added to every pixel's error; 0 needs no LPIPS weights.
    perceptual_crop: pixels of a side of the random crop that LPIPS sees; 0: the whole image.
    pixel_loss: that error, "l1" or "l2".
    disc_weight: on the adversarial term, times the adaptive weight; 0 trains no discriminator.
    disc_start: training step (counted in optimizer steps) at which the adversary begins.
    learn_logvar: learn the output's log variance, from `logvar`; otherwise it stays there (as in
      the official code, whose parameter no optimizer ever saw).
    terms: {name in TERMS: weight}, added to the autoencoder's loss; each is logged as term_NAME,
      without its weight.
    disc_terms: {name in DISCRIMINATOR_TERMS: weight}, added to the discriminator's, logged alike.
    latent_noise: of a Paired model, see the module; in deviations of the latents.
    """

    kl_weight: float
    codebook_weight: float
    beta: float
    legacy_vq: bool
    perceptual_weight: float
    disc_weight: float
    disc_start: int
    disc_loss: str
    logvar: float
    learn_logvar: bool
    pixel_loss: str = "l1"
    restart: int = 0
    perceptual_crop: int = 0
    terms: dict = dataclasses.field(default_factory=dict)
    disc_terms: dict = dataclasses.field(default_factory=dict)
    latent_noise: float = 0.1


@dataclasses.dataclass(frozen=True)
class Autoencode:
    """The first stage as players. size: pixels of a side of the training images.

    encoder: of a Paired model, the weights of its encoder, or their shapes.
    perceive: (frozen["lpips"], x, y) -> LPIPS distances [b], or None.
    scores: {name: (x, y) -> [b]}, what evaluation adds to the mean absolute error.
    measure: () -> what a new model starts from (models.shortcut.started), or None.
    """

    model: Autoencoder | Paired
    loss: Loss
    discriminator: PatchDiscriminator
    size: int
    encoder: object = None
    perceive: object = None
    lpips: object = None
    scores: dict = dataclasses.field(default_factory=dict)
    measure: object = None

    @property
    def bottleneck(self):
        return BOTTLENECKS.get(self.model.bottleneck)

    def check(self):
        """Raises UsageError for settings of the loss that do nothing here."""
        loss = self.loss
        wanted = {
            "restart": (loss.restart, self._trains_entries, "a codebook that is trained"),
            "perceptual_crop": (loss.perceptual_crop, loss.perceptual_weight, "perceptual_weight"),
            "disc_terms": (sum(loss.disc_terms.values()), loss.disc_weight, "disc_weight"),
        }
        for name, (value, there, what) in wanted.items():
            if value and not there:
                raise errors.UsageError(f"{name}={value} does nothing without {what}: set it to 0.")

    def stage(self) -> api.Stage:
        """Its players: the autoencoder, and the discriminator where it has a weight."""
        own = self.init_autoencoder, self.autoencoder_loss, self.measure
        # The encoder is that of an average, so a decoder that goes on begins as the average's.
        more = {"averaged": self._paired, "after": self.restart if self._restarts else None}
        more |= {"rates": self.rates} if getattr(self.model, "shortcut", "") else {}
        players = [api.Player("autoencoder", *own, **more)]
        if self.loss.disc_weight:
            its = self.init_discriminator, self.discriminator_loss
            players.append(api.Player("discriminator", *its, begins=self.loss.disc_start))
        networks = {"lpips": self.lpips, "encoder": self.encoder}
        return api.Stage(
            fields=("image",),
            players=tuple(players),
            frozen={k: v for k, v in networks.items() if v is not None},
            evaluate=self.evaluate,
            draw=self.draw,
            columns={"reconstructions": 8},
            watched="l1",  # the losses jump where the discriminator begins
            alarms={"disc_accuracy": (adversary.WON, adversary.ADVICE)},
            rules=parallel.RULES,
        )

    def init_autoencoder(self, key, measured=None):
        params = {"model": variables.initial(self.model, key, self._blank())["params"]}
        if self._paired:
            params["model"] = params["model"]["decoder"]
        if measured is not None:
            positions = self.model.path_fold**2
            params["model"] = shortcut.started(params["model"], measured, positions)
        if self.loss.learn_logvar:
            params["logvar"] = jnp.float32(self.loss.logvar)
        if self._restarts:
            params["idle"] = jnp.zeros(self.model.codebook_size)  # steps without use, by entry
        return params

    @property
    def _paired(self):
        return isinstance(self.model, Paired)

    @property
    def _trains_entries(self):
        return self.bottleneck.entries and not self._paired

    @property
    def _restarts(self):
        return self.loss.restart and self._trains_entries

    def rates(self, params):
        return jax.tree.map(lambda _: 1.0, params) | {"model": shortcut.rates(params["model"])}

    def restart(self, params, grads, key):
        """Puts entries of the codebook that have died close to random ones that are in use."""
        book = params["model"]["codebook"]
        used = jnp.any(grads["model"]["codebook"] != 0, axis=-1)  # others have no gradient at all
        idle = jnp.where(used, 0.0, params["idle"] + 1)
        dead = idle >= self.loss.restart
        choose, shift = jax.random.split(key)
        near = jax.random.categorical(choose, jnp.log(used + 1e-9), shape=used.shape)
        moved = book[near] + NEAR * jnp.std(book) * jax.random.normal(shift, book.shape)
        model = params["model"] | {"codebook": jnp.where(dead[:, None], moved, book)}
        return params | {"model": model, "idle": jnp.where(dead, 0.0, idle)}

    def init_discriminator(self, key):
        # Noise, as ActNorm starts from the statistics of what it sees first.
        images = jax.random.normal(jax.random.fold_in(key, 1), self._blank().shape)
        return variables.initial(self.discriminator, key, images)["params"]

    def autoencoder_loss(self, params, frozen, batch, key, step, shared):
        """Reconstruction, regulariser, further terms and, from disc_start on, the adversarial."""
        own, x = params["autoencoder"], batch["image"]
        sample_key, dropout_key = jax.random.split(key)
        model, rngs = whole(own, frozen), {"dropout": dropout_key}
        regulariser, metrics, z = self._latent(model, x, sample_key, rngs)
        x_hat, features = self._decode(model, z, rngs)

        def distance(x, x_hat):
            return self._nll(own, frozen, x, x_hat, jax.random.fold_in(key, 1))

        def nll(x_hat):
            return distance(x, x_hat)

        def adversarial(x_hat):
            return -jnp.mean(self.discriminator.apply({"params": params["discriminator"]}, x_hat))

        total = nll(x_hat) + regulariser
        metrics |= {"nll": nll(x_hat), "l1": jnp.mean(jnp.abs(x - x_hat))}
        for name, weight in _weighty(self.loss.terms):
            more = dict(z=z, distance=distance, key=jax.random.fold_in(key, 2))
            more["decode"] = lambda z: self._decode(model, z, rngs)[0]
            metrics[f"term_{name}"] = term = terms.value(name, x, x_hat, step, **more)
            total += weight * term
        if self.loss.disc_weight:
            kernel = own["model"]["decoder"]["conv_out"]["kernel"]
            slope = 1 - x_hat**2 if getattr(self.model, "tanh_out", False) else 1.0
            adaptive = adversary.adaptive_weight(nll, adversarial, x_hat, features, kernel, slope)
            weight = self._gate(step) * adaptive
            total += self.loss.disc_weight * weight * adversarial(x_hat)
            metrics |= {"adversarial": adversarial(x_hat), "adaptive_weight": weight}
        return total, (metrics, {"x_hat": x_hat})

    def discriminator_loss(self, params, frozen, batch, key, step, shared):
        """Tells images from the reconstructions of this step."""
        x, own = batch["image"], {"params": params["discriminator"]}
        discriminate = lambda x: self.discriminator.apply(own, x)
        real, fake = discriminate(x), discriminate(shared["x_hat"])
        total = DISCRIMINATOR_LOSSES.get(self.loss.disc_loss)(real, fake)
        metrics = {"logits_real": jnp.mean(real), "logits_fake": jnp.mean(fake)}
        for name, weight in _weighty(self.loss.disc_terms):
            term = DISCRIMINATOR_TERMS.get(name)(discriminate, x, real, fake)
            metrics[f"term_{name}"] = term
            total += weight * term
        metrics["disc_accuracy"] = self._gate(step) * adversary.accuracy(real, fake)
        return self._gate(step) * total, (metrics, shared)

    def evaluate(self, params, frozen, batch, key):
        """Scores, mean absolute error and LPIPS of the mode's reconstruction, clipped; [b] each.

        full_psnr_db: of a Paired model, what the encoder's own decoder makes of the same latents.
        """
        x = batch["image"]
        x_hat = jnp.clip(self._mode(params, frozen, x), -1, 1)
        values = {name: score(x, x_hat) for name, score in self.scores.items()}
        if self._paired and "psnr_db" in values:
            full = jnp.clip(self._full(frozen, x), -1, 1)
            values["full_psnr_db"] = self.scores["psnr_db"](x, full)
        values["l1"] = jnp.mean(jnp.abs(x - x_hat), axis=(1, 2, 3))
        if self.perceive:
            values["lpips"] = self.perceive(frozen["lpips"], x, x_hat)
        return values

    def draw(self, params, frozen, batch, key):
        """Rows of up to eight images, each above its reconstruction.

        Of a Paired model, the reconstruction by the encoder's own decoder stands between.
        """
        x = batch["image"][:16]
        parts = [x, self._full(frozen, x)] if self._paired else [x]
        parts.append(self._mode(params, frozen, x))
        rows = [part[i : i + 8] for i in range(0, len(x), 8) for part in parts]
        return {"reconstructions": jnp.concatenate(rows)}

    def _blank(self):
        return jnp.zeros((1, self.size, self.size, self.model.image_channels))

    def _gate(self, step):
        return jnp.where(step >= self.loss.disc_start, 1.0, 0.0)

    def _latent(self, model, x, key, rngs):
        """The weighted regulariser, metrics, and the latent to decode, of images x."""
        moments = self.model.apply({"params": model}, x, train=True, method="encode", rngs=rngs)
        if self._paired:
            z = self.bottleneck.mode(moments)
            return 0.0, {"latent_std": jnp.std(z)}, self._erred(z, key)
        return self.bottleneck.regularise(model, moments, key, self.loss)

    def _erred(self, z, key):
        """Latents z with an error like a denoiser's, see the module."""
        share, noise = jax.random.split(key)
        s = self.loss.latent_noise * jax.random.uniform(share, (len(z), 1, 1, 1))
        return z + s * jnp.std(z) * jax.random.normal(noise, z.shape)

    def _decode(self, model, z, rngs):
        """Images of latents, and the features before the last convolution."""
        x_hat, kept = self.model.apply(
            {"params": model}, z, train=True, method="decode", rngs=rngs, mutable=["intermediates"]
        )
        [features] = jax.tree.leaves(kept)
        return x_hat, features

    def _nll(self, own, frozen, x, x_hat, key):
        """The reconstruction term: a sum over an image, or a mean, as the bottleneck says."""
        error = PIXEL_LOSSES.get(self.loss.pixel_loss)(x - x_hat)
        if self.perceive:
            seen = self._crop(key, x), self._crop(key, x_hat)
            distance = self.perceive(frozen["lpips"], *seen)
            error += self.loss.perceptual_weight * distance[:, None, None, None]
        if not self.bottleneck.summed:
            return jnp.mean(error)
        logvar = own.get("logvar", jnp.float32(self.loss.logvar))
        return jnp.sum(error / jnp.exp(logvar) + logvar) / len(x)

    def _crop(self, key, x):
        """A square of images x at random, the same for the same key."""
        side = self.loss.perceptual_crop
        if not side or side >= min(x.shape[1:3]):
            return x
        most = jnp.array(x.shape[1:3]) - side + 1
        top, left = jax.random.randint(key, (2,), 0, most)
        return jax.lax.dynamic_slice(x, (0, top, left, 0), (len(x), side, side, x.shape[-1]))

    def _mode(self, params, frozen, x):
        return self._reconstructed(self.model, whole(params["autoencoder"], frozen), x)

    def _full(self, frozen, x):
        return self._reconstructed(self.model.encoder, frozen["encoder"], x)

    def _reconstructed(self, model, params, x):
        z = self.bottleneck.mode(model.apply({"params": params}, x, method="encode"))
        return model.apply({"params": params}, z, method="decode")


def whole(own, frozen):
    """The parameters of the model that this player trains. own: the player's."""
    if "encoder" not in frozen:
        return own["model"]
    return {"encoder": frozen["encoder"], "decoder": own["model"]}


def _weighty(terms: dict):
    """The terms, by name, whose weight is not 0."""
    return [(name, weight) for name, weight in sorted(terms.items()) if weight]


def check(loss: Loss, has_lpips: bool):
    """Raises UsageError for terms that cannot be computed."""
    if loss.perceptual_weight and not has_lpips:
        raise errors.UsageError(
            f"perceptual_weight is {loss.perceptual_weight}, but the weights of LPIPS are not set: "
            "lpips.backbone=vgg16 and lpips.heads=lpips:vgg fetch them (or give the paths of "
            "torchvision's vgg16-397923af.pth and of richzhang/PerceptualSimilarity's "
            "lpips/weights/v0.1/vgg.pth); or set perceptual_weight to 0."
        )
    DISCRIMINATOR_LOSSES.get(loss.disc_loss)
    PIXEL_LOSSES.get(loss.pixel_loss)
    for known, names in ((TERMS, loss.terms), (DISCRIMINATOR_TERMS, loss.disc_terms)):
        for name in names:
            known.get(name)
