"""The first stage: an autoencoder, and an adversary of patches (Rombach et al. 2022, sec. 3.1).

    autoencoder loss = reconstruction + regulariser + terms of your own + weight * adversarial
    discriminator loss = hinge or vanilla, on the same reconstruction

Both players see one forward pass of the autoencoder per step (the official code runs a second one
for the discriminator). Before step `disc_start` the adversarial terms are zero and the
discriminator rests.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ldm_jax.base import errors, registry
from ldm_jax.models import parallel, shortcut
from ldm_jax.models.autoencoder import Autoencoder
from ldm_jax.models.bottleneck import BOTTLENECKS
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.stages import api

DISCRIMINATOR_LOSSES = registry.Registry("discriminator loss")
# (x, x_hat, step) -> scalar: images [b, h, w, 3], their reconstructions, the optimizer step. A term
# is added where `config.loss.terms = dict(NAME=weight)` gives it a weight.
TERMS = registry.Registry("loss term")
PIXEL_LOSSES = registry.Registry("pixel loss")
PIXEL_LOSSES.register("l1")(jnp.abs)
PIXEL_LOSSES.register("l2")(jnp.square)


@DISCRIMINATOR_LOSSES.register("hinge")
def hinge(real, fake):
    """Lim & Ye 2017. real, fake: logits -> scalar."""
    return 0.5 * (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake)))


@DISCRIMINATOR_LOSSES.register("vanilla")
def vanilla(real, fake):
    """Goodfellow et al. 2014, on logits -> scalar."""
    return 0.5 * (jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake)))


@dataclasses.dataclass(frozen=True)
class Loss:
    """The weights of the first stage's terms; one field is one key of `config.loss`.

    kl_weight: on the KL divergence, summed over a latent; codebook_weight: on the VQ loss, whose
      `beta` and `legacy_vq` are those of bottleneck.vq_loss. The bottleneck takes its own.
    perceptual_weight: on LPIPS, added to every pixel's error; 0 needs no LPIPS weights.
    pixel_loss: that error, "l1" or "l2".
    disc_weight: on the adversarial term, times the adaptive weight; 0 trains no discriminator.
    disc_start: training step (counted in optimizer steps) at which the adversary begins.
    learn_logvar: learn the output's log variance, from `logvar`; otherwise it stays there (as in
      the official code, whose parameter no optimizer ever saw).
    terms: {name in TERMS: weight}, added to the autoencoder's loss; each is logged as term_NAME,
      without its weight.
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
    terms: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Autoencode:
    """The first stage as players. size: pixels of a side of the training images.

    perceive: (frozen["lpips"], x, y) -> LPIPS distances [b], or None.
    scores: {name: (x, y) -> [b]}, what evaluation adds to the mean absolute error.
    measure: () -> what a new model starts from (models.shortcut.started), or None.
    """

    model: Autoencoder
    loss: Loss
    discriminator: PatchDiscriminator
    size: int
    perceive: object = None
    lpips: object = None
    scores: dict = dataclasses.field(default_factory=dict)
    measure: object = None

    @property
    def bottleneck(self):
        return BOTTLENECKS.get(self.model.bottleneck)

    def stage(self) -> api.Stage:
        """Its players: the autoencoder, and the discriminator where it has a weight."""
        own = self.init_autoencoder, self.autoencoder_loss, self.measure
        players = [api.Player("autoencoder", *own)]
        if self.loss.disc_weight:
            its = self.init_discriminator, self.discriminator_loss
            players.append(api.Player("discriminator", *its, begins=self.loss.disc_start))
        return api.Stage(
            fields=("image",),
            players=tuple(players),
            frozen={"lpips": self.lpips} if self.lpips is not None else {},
            evaluate=self.evaluate,
            draw=self.draw,
            columns={"reconstructions": 8},
            watched="l1",  # the losses jump where the discriminator begins
            rules=parallel.RULES,
        )

    def init_autoencoder(self, key, measured=None):
        params = {"model": self.model.init(key, self._blank())["params"]}
        if measured is not None:
            params["model"] = shortcut.started(params["model"], measured)
        if self.loss.learn_logvar:
            params["logvar"] = jnp.float32(self.loss.logvar)
        return params

    def init_discriminator(self, key):
        # Noise, as ActNorm starts from the statistics of what it sees first.
        images = jax.random.normal(jax.random.fold_in(key, 1), self._blank().shape)
        return self.discriminator.init(key, images)["params"]

    def autoencoder_loss(self, params, frozen, batch, key, step, shared):
        """Reconstruction, regulariser, further terms and, from disc_start on, the adversarial."""
        own, x = params["autoencoder"], batch["image"]
        sample_key, dropout_key = jax.random.split(key)
        x_hat, features, regulariser, metrics = self._reconstruct(own, x, sample_key, dropout_key)

        def nll(x_hat):
            return self._nll(own, frozen, x, x_hat)

        def adversarial(x_hat):
            return -jnp.mean(self.discriminator.apply({"params": params["discriminator"]}, x_hat))

        total = nll(x_hat) + regulariser
        metrics |= {"nll": nll(x_hat), "l1": jnp.mean(jnp.abs(x - x_hat))}
        for name, weight in self.loss.terms.items():
            metrics[f"term_{name}"] = term = TERMS.get(name)(x, x_hat, step)
            total += weight * term
        if self.loss.disc_weight:
            kernel = own["model"]["decoder"]["conv_out"]["kernel"]
            slope = 1 - x_hat**2 if getattr(self.model, "tanh_out", False) else 1.0
            adaptive = adaptive_weight(nll, adversarial, x_hat, features, kernel, slope)
            weight = self._gate(step) * adaptive
            total += self.loss.disc_weight * weight * adversarial(x_hat)
            metrics |= {"adversarial": adversarial(x_hat), "adaptive_weight": weight}
        return total, (metrics, {"x_hat": x_hat})

    def discriminator_loss(self, params, frozen, batch, key, step, shared):
        """Tells images from the reconstructions of this step."""
        own = {"params": params["discriminator"]}
        real = self.discriminator.apply(own, batch["image"])
        fake = self.discriminator.apply(own, shared["x_hat"])
        loss = self._gate(step) * DISCRIMINATOR_LOSSES.get(self.loss.disc_loss)(real, fake)
        return loss, ({"logits_real": jnp.mean(real), "logits_fake": jnp.mean(fake)}, shared)

    def evaluate(self, params, frozen, batch, key):
        """Scores, mean absolute error and LPIPS of the mode's reconstruction, clipped; [b] each."""
        x = batch["image"]
        x_hat = jnp.clip(self._mode(params["autoencoder"]["model"], x), -1, 1)
        values = {name: score(x, x_hat) for name, score in self.scores.items()}
        values["l1"] = jnp.mean(jnp.abs(x - x_hat), axis=(1, 2, 3))
        if self.perceive:
            values["lpips"] = self.perceive(frozen["lpips"], x, x_hat)
        return values

    def draw(self, params, frozen, batch, key):
        """Rows of up to eight images, each above its reconstruction."""
        x = batch["image"][:16]
        x_hat = self._mode(params["autoencoder"]["model"], x)
        rows = [half[i : i + 8] for i in range(0, len(x), 8) for half in (x, x_hat)]
        return {"reconstructions": jnp.concatenate(rows)}

    def _blank(self):
        return jnp.zeros((1, self.size, self.size, self.model.image_channels))

    def _gate(self, step):
        return jnp.where(step >= self.loss.disc_start, 1.0, 0.0)

    def _reconstruct(self, own, x, sample_key, dropout_key):
        """x_hat, the features before the last convolution, the weighted regulariser, metrics."""
        bound = {"params": own["model"]}
        rngs = {"dropout": dropout_key}
        moments = self.model.apply(bound, x, train=True, method="encode", rngs=rngs)
        regulariser, metrics, z = self.bottleneck.regularise(
            own["model"], moments, sample_key, self.loss
        )
        x_hat, kept = self.model.apply(
            bound, z, train=True, method="decode", rngs=rngs, mutable=["intermediates"]
        )
        features = kept["intermediates"]["decoder"]["last_features"][0]
        return x_hat, features, regulariser, metrics

    def _nll(self, own, frozen, x, x_hat):
        """The reconstruction term: a sum over an image, or a mean, as the bottleneck says."""
        error = PIXEL_LOSSES.get(self.loss.pixel_loss)(x - x_hat)
        if self.perceive:
            distance = self.perceive(frozen["lpips"], x, x_hat)
            error += self.loss.perceptual_weight * distance[:, None, None, None]
        if not self.bottleneck.summed:
            return jnp.mean(error)
        logvar = own.get("logvar", jnp.float32(self.loss.logvar))
        return jnp.sum(error / jnp.exp(logvar) + logvar) / len(x)

    def _mode(self, params, x):
        z = self.bottleneck.mode(self.model.apply({"params": params}, x, method="encode"))
        return self.model.apply({"params": params}, z, method="decode")


def adaptive_weight(nll, adversarial, x_hat, features, kernel, slope=1.0):
    """|grad nll| / (|grad adversarial| + 1e-4) at the decoder's last kernel.

    Esser et al. 2021 (VQ-GAN), eq. 7. Clipped to [0, 1e4], free of gradients. `nll` and
    `adversarial` map x_hat [b, h, w, 3] to a scalar; features: [b, h, w, c], what the last
    convolution reads; kernel: [3, 3, c, 3]. Only these are differentiated again. slope: of what
    turns the convolution's output into x_hat, like x_hat.
    """
    x_hat, features, kernel, slope = jax.lax.stop_gradient((x_hat, features, kernel, slope))
    x, how = features.astype(jnp.float32), dict(precision=jax.lax.Precision.HIGHEST)
    how["dimension_numbers"] = ("NHWC", "HWIO", "NHWC")
    convolve = lambda k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", **how)
    _, pull_back = jax.vjp(convolve, kernel)
    norm = lambda loss: jnp.linalg.norm(pull_back(jax.grad(loss)(x_hat) * slope)[0])
    weight = norm(nll) / (norm(adversarial) + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(weight, 0.0, 1e4))


def check(loss: Loss, has_lpips: bool):
    """Raises UsageError for terms that cannot be computed."""
    if loss.perceptual_weight and not has_lpips:
        raise errors.UsageError(
            f"perceptual_weight is {loss.perceptual_weight}, but the weights of LPIPS are not set: "
            "give lpips.backbone the path of torchvision's vgg16-397923af.pth and lpips.heads that "
            "of vgg.pth from richzhang/PerceptualSimilarity (lpips/weights/v0.1), or set "
            "perceptual_weight to 0."
        )
    DISCRIMINATOR_LOSSES.get(loss.disc_loss)
    PIXEL_LOSSES.get(loss.pixel_loss)
    for name in loss.terms:
        TERMS.get(name)
