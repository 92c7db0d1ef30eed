"""Two autoencoders as one: the encoder and the bottleneck of the first, the other's decoder."""

from flax import linen as nn

from ldm_jax.models.bottleneck import BOTTLENECKS


class Paired(nn.Module):
    """Images [b, h, w, 3] to latents [b, h/f, w/f, c] by `encoder`, back by `decoder`.

    Both are registered autoencoders with the same f and channels. params: {"encoder": the first
    one's tree, whole, "decoder": of the second one's what its `decode` reads}. Latents are
    quantised as `encoder` does it, so `decoder` should have a bottleneck that leaves them alone.
    """

    encoder: nn.Module
    decoder: nn.Module

    def encode(self, x, train=False):
        """The moments that `encoder` makes, without dropout: its training is over."""
        return self.encoder.encode(x)

    def decode(self, z, train=False):
        own = self.encoder.variables.get("params", {})
        return self.decoder.decode(BOTTLENECKS.get(self.bottleneck).quantise(own, z), train)

    def __call__(self, x, train=False):
        return self.decode(BOTTLENECKS.get(self.bottleneck).mode(self.encode(x)), train)

    @property
    def f(self) -> int:
        return self.encoder.f

    @property
    def latent_channels(self) -> int:
        return self.encoder.latent_channels

    @property
    def image_channels(self) -> int:
        return self.decoder.image_channels

    @property
    def bottleneck(self) -> str:
        return self.encoder.bottleneck

    @property
    def codebook_size(self) -> int:
        return self.encoder.codebook_size

    @property
    def tanh_out(self) -> bool:
        return getattr(self.decoder, "tanh_out", False)
