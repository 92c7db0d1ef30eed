"""The second stage's trained network: a UNet and the conditioners that speak to it."""

import jax.numpy as jnp
from flax import linen as nn

from ldm_jax.models import conditioners
from ldm_jax.models.unet import UNet


class Denoiser(nn.Module):
    """UNet plus conditioners; without any, unconditional. params: {"unet", "conditioners_<i>"}."""

    unet: UNet
    conditioners: tuple = ()

    def __call__(self, x, t, batch=None, drop=None, train=False):
        """x: [b, h, w, c], t: [b], batch: fields by name, drop: [b] bool -> like x."""
        drop = jnp.zeros(x.shape[:1], bool) if drop is None else drop
        return self.denoise(x, t, self.condition(batch or {}, drop), train)

    def condition(self, batch, drop):
        """What the conditioners say, as one Cond. drop: [b] bool, True for the null condition."""
        return conditioners.merge([conditioner(batch, drop) for conditioner in self.conditioners])

    def denoise(self, x, t, cond, train=False):
        """The UNet's output for a ready Cond: a sampler conditions once and denoises many times."""
        return self.unet(x, t, **cond._asdict(), train=train)

    @property
    def fields(self):
        """The batch fields that the conditioners read."""
        return tuple(field for conditioner in self.conditioners for field in conditioner.fields)

    @property
    def latent_of(self):
        """{field: image field} of the fields that are latents of an image of the batch."""
        return {k: v for conditioner in self.conditioners for k, v in conditioner.latent_of.items()}

    @nn.nowrap
    def example(self, image, latent):
        """Zero fields for images [b, h, w, 3] and latents [b, h/f, w/f, c] of these shapes."""
        parts = [conditioner.example(image, latent) for conditioner in self.conditioners]
        return {field: array for part in parts for field, array in part.items()}
