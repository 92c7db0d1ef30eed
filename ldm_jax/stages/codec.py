"""The first stage as the second one uses it: frozen, images to latents and back."""

import dataclasses

import jax.numpy as jnp

from ldm_jax.models.autoencoder import Autoencoder
from ldm_jax.models.bottleneck import BOTTLENECKS, Bottleneck
from ldm_jax.models.paired import Paired


@dataclasses.dataclass(frozen=True)
class Codec:
    """A trained autoencoder, or with `model=None` the identity (f = 1, pixel diffusion).

    Latents here are the autoencoder's own, unscaled; for VQ they are those before quantisation, and
    decoding quantises. image_channels: of the identity.
    """

    model: Autoencoder | Paired | None = None
    image_channels: int = 3

    @property
    def f(self) -> int:
        return self.model.f if self.model else 1

    @property
    def channels(self) -> int:
        return self.model.latent_channels if self.model else self.image_channels

    @property
    def bottleneck(self) -> Bottleneck:
        return BOTTLENECKS.get(self.model.bottleneck if self.model else "none")

    def encode(self, params, x, key=None):
        """[b, h, w, 3] -> [b, h/f, w/f, c]: the posterior's mode, or with a key a sample of it."""
        return self.latents(self.moments(params, x), key)

    def encode_batch(self, params, batch, key=None):
        """`encode` of a batch's `image`, or of its `moments` where a latent cache has them."""
        return self.latents(self.batch_moments(params, batch), key)

    def batch_moments(self, params, batch):
        """The `moments` of a batch, from a latent cache, or those of its `image`."""
        return batch["moments"] if "moments" in batch else self.moments(params, batch["image"])

    def moments(self, params, x):
        """[b, h, w, 3] -> [b, h/f, w/f, bottleneck.moments * c], what `latents` takes."""
        if self.model is None:
            return x
        return self.model.apply({"params": params}, x, method="encode")

    def latents(self, moments, key=None):
        """What `moments` gave -> [b, h/f, w/f, c], float32; the mode, or with a key a sample."""
        own = self.bottleneck
        return own.mode(moments) if key is None else own.sample(key, moments)

    def counts(self, params, z):
        """How often each image uses each entry of the codebook; see Bottleneck.counts."""
        own = params["encoder"] if isinstance(self.model, Paired) else params
        return self.bottleneck.counts(own, z)

    def decode(self, params, z):
        """[b, h/f, w/f, c] -> [b, h, w, 3], not clipped."""
        if self.model is None:
            return jnp.asarray(z)
        return self.model.apply({"params": params}, z, method="decode")
