"""Bottlenecks: what happens to a latent between the encoder and the decoder, in float32.

KL: Kingma & Welling 2014. VQ: van den Oord et al. 2017, in the form of VQ-GAN (Esser et al. 2021).
Another one is one registered value, and `config.model.bottleneck` its name:

    @dataclasses.dataclass(frozen=True)
    class Signs(bottleneck.Bottleneck):
        def quantise(self, params, z):
            return bottleneck.straight_through(z, jnp.sign(z))

    bottleneck.BOTTLENECKS.register("signs")(Signs())
"""

import dataclasses

import jax
import jax.numpy as jnp

from ldm_jax.base import registry

ENTROPY = 0.1  # weight of the entropies of lookup-free quantisation, beside its commitment term
BOTTLENECKS = registry.Registry("bottleneck")


@dataclasses.dataclass(frozen=True)
class Bottleneck:
    """A bottleneck that changes nothing, and the base class of all others.

    What the encoder makes is called moments, [b, h, w, moments * c]; a latent is [b, h, w, c].
    `params` is the autoencoder's tree, in which a bottleneck finds the parameters it asked for.

    moments: channels of the moments for each channel of the latent.
    fixed: whether the last half of them is the model's constant `posterior_logvar`, which the
      encoder does not make.
    summed: whether the reconstruction's error is summed over an image, with a log variance, or (as
      the official VQ losses do) averaged.
    entries: whether a latent is one of the entries of a codebook.
    """

    moments: int = 1
    fixed: bool = False
    summed: bool = True
    entries: bool = False

    def parameters(self, entries: int, channels: int) -> dict:
        """{name: (initialiser, shape)} of its own. entries: `codebook_size`; channels: c."""
        return {}

    def mode(self, moments):
        """The most likely latent, float32, before it is quantised."""
        return jnp.asarray(moments, jnp.float32)

    def sample(self, key, moments):
        """A latent drawn from the posterior; by default the posterior has one latent only."""
        return self.mode(moments)

    def regularise(self, params, moments, key, loss):
        """The term of the autoencoder's loss, {metric: scalar}, and the latent to decode.

        loss: the stage's Loss (stages/autoencode.py); the term comes multiplied by its weights.
        """
        return 0.0, {"latent_std": jnp.std(moments)}, self.sample(key, moments)

    def quantise(self, params, z):
        """The latent as the decoder gets it, in the shape of z."""
        return z

    def variance(self, moments):
        """The posterior's variance about `mode`, like it; 0 where latents are not drawn."""
        return jnp.zeros_like(self.mode(moments))

    def counts(self, params, z):
        """How often each image uses each entry of the codebook: int [b, entries], 0 without one."""
        return jnp.zeros((len(z), 0))


def split(moments):
    """Moments [b, h, w, 2c] -> mean, logvar, each [b, h, w, c]; logvar clamped to [-30, 20]."""
    mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(logvar, -30.0, 20.0)


def kl(moments):
    """KL(posterior || N(0, 1)), summed over space and channels. [b, h, w, 2c] -> [b]."""
    mean, logvar = split(moments)
    return 0.5 * jnp.sum(mean**2 + jnp.exp(logvar) - 1.0 - logvar, axis=(1, 2, 3))


def noise_share(noise, signal):
    """The share of latents' variance that is the posterior's noise, by channel.

    A denoiser learns to draw this noise although no picture shows it. A channel that is nearly all
    noise is dead.
    noise, signal: [c], the mean variance of posteriors and the variance of their modes.
    """
    return noise / (noise + signal + 1e-12)


def quantise(codebook, z):
    """The nearest entries. codebook: [k, c], z: [b, h, w, c] -> z_q like z, indices [b, h, w]."""
    z = z.astype(jnp.float32)
    # |z - e|^2 without |z|^2, which is the same for every entry
    products = jnp.einsum("bhwc,kc->bhwk", z, codebook, precision=jax.lax.Precision.HIGHEST)
    indices = jnp.argmin(jnp.sum(codebook**2, axis=-1) - 2.0 * products, axis=-1)
    return jnp.take(codebook, indices, axis=0), indices


def straight_through(z, z_q):
    """z_q in the forward pass, the gradient of z in the backward pass."""
    return z + jax.lax.stop_gradient(z_q - z)


def vq_loss(z, z_q, beta=0.25, legacy=True):
    """Codebook and commitment terms, a scalar. z, z_q: [b, h, w, c], z_q fresh from `quantise`.

    The paper weights the commitment term (which moves z) by beta. The official code weights the
    codebook term instead, and every published VQ model was trained so: `legacy=True`.
    """
    commitment = jnp.mean((jax.lax.stop_gradient(z_q) - z) ** 2)
    codebook = jnp.mean((z_q - jax.lax.stop_gradient(z)) ** 2)
    return commitment + beta * codebook if legacy else codebook + beta * commitment


def usage(indices, k):
    """The codebook's perplexity, and the fraction of its k entries that occur. indices: int."""
    counts = jnp.bincount(indices.reshape(-1), length=k)
    p = counts / indices.size
    perplexity = jnp.exp(-jnp.sum(p * jnp.log(p + 1e-10)))
    return {"perplexity": perplexity, "usage": jnp.mean((counts > 0).astype(jnp.float32))}


def _uniform(key, shape):
    """A codebook of k entries begins uniform in (-1/k, 1/k), as in VQ-GAN."""
    return (2 * jax.nn.initializers.uniform(1.0)(key, shape) - 1) / shape[0]


@dataclasses.dataclass(frozen=True)
class Gaussian(Bottleneck):
    """The moments are a mean and a log variance; the loss pulls them towards N(0, 1)."""

    moments: int = 2

    def mode(self, moments):
        return split(moments)[0]

    def sample(self, key, moments):
        mean, logvar = split(moments)
        return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)

    def regularise(self, params, moments, key, loss):
        divergence = jnp.mean(kl(moments))
        term, std = loss.kl_weight * divergence, jnp.std(self.mode(moments))
        noise, signal = self.variance(moments), jnp.var(self.mode(moments), (0, 1, 2))
        share = noise_share(jnp.mean(noise, (0, 1, 2)), signal)
        metrics = {"kl": divergence, "latent_std": std, "latent_noise": jnp.mean(share)}
        return term, metrics, self.sample(key, moments)

    def variance(self, moments):
        return jnp.exp(split(moments)[1])


@dataclasses.dataclass(frozen=True)
class Noise(Gaussian):
    """Noise of the same variance on all latents, as in Unified Latents (2026, arXiv 2602.17270).

    The KL divergence then only keeps the means from growing until the noise no longer matters.
    """

    fixed: bool = True


@dataclasses.dataclass(frozen=True)
class Codebook(Bottleneck):
    """The decoder sees the nearest of k learned entries: params["codebook"], [k, c]."""

    summed: bool = False
    entries: bool = True

    def parameters(self, entries, channels):
        return {"codebook": (_uniform, (entries, channels))}

    def regularise(self, params, moments, key, loss):
        z_q, indices = quantise(params["codebook"], moments)
        vq = vq_loss(moments, z_q, loss.beta, loss.legacy_vq)
        term, used = loss.codebook_weight * vq, usage(indices, len(params["codebook"]))
        return term, {"vq": vq, "latent_std": jnp.std(moments), **used}, moments

    def quantise(self, params, z):
        return straight_through(z, quantise(params["codebook"], z)[0])

    def counts(self, params, z):
        _, indices = quantise(params["codebook"], z)
        count = lambda i: jnp.bincount(i.ravel(), length=len(params["codebook"]))
        return jax.vmap(count)(indices)


@dataclasses.dataclass(frozen=True)
class Signs(Bottleneck):
    """The decoder sees the sign of each channel: 2**c entries, and no codebook to look them up in.

    Lookup-free quantisation (Yu et al. 2024, MAGVIT-v2, arXiv 2310.05737, sec. 3.1). The entropies
    in its loss are those of single channels, so that their number does not matter.
    """

    summed: bool = False

    def quantise(self, params, z):
        return straight_through(z, jnp.where(z > 0, 1.0, -1.0))

    def regularise(self, params, moments, key, loss):
        z = self.mode(moments)
        p = jax.nn.sigmoid(4 * z)  # of +1, a softmax of squared distances
        entropy = lambda p: jnp.mean(jax.scipy.special.entr(p) + jax.scipy.special.entr(1 - p))
        used = entropy(jnp.mean(p, (0, 1, 2)))
        surplus = entropy(p) - used  # low where each bit is certain and both its values are in use
        commitment = jnp.mean((jax.lax.stop_gradient(self.quantise(params, z)) - z) ** 2)
        vq = loss.beta * commitment + ENTROPY * surplus
        metrics = {"vq": vq, "bit_entropy": used / jnp.log(2.0)}
        return loss.codebook_weight * vq, {"latent_std": jnp.std(z), **metrics}, z


BOTTLENECKS.register("none")(Bottleneck())
BOTTLENECKS.register("kl")(Gaussian())
BOTTLENECKS.register("noise")(Noise())
BOTTLENECKS.register("vq")(Codebook())
BOTTLENECKS.register("lfq")(Signs())
