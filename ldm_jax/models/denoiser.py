"""The second stage's trained network: a UNet and the conditioners that speak to it."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from ldm_jax.models import conditioners
from ldm_jax.models.unet import UNet


class Denoiser(nn.Module):
    """UNet plus conditioners; without any, unconditional. params: {"unet", "conditioners_<i>"}.

    Conditioners that have weights from elsewhere need them as the collection "frozen".
    """

    unet: UNet
    conditioners: tuple = ()

    def __call__(self, x, t, batch=None, drop=None, train=False):
        """x: [b, h, w, c], t: [b], batch: fields by name, drop: see `condition` -> like x."""
        drop = jnp.zeros(x.shape[:1], bool) if drop is None else drop
        return self.denoise(x, t, self.condition(batch or {}, drop), train)

    def condition(self, batch, drop):
        """What the conditioners say, as one Cond.

        drop: [b] bool, True for the null condition; or [b, conditioners], for each its own.
        """
        drop = drop if drop.ndim == 2 else drop[:, None]
        rows = jnp.broadcast_to(drop, (len(drop), len(self.conditioners))).T
        return conditioners.merge([c(batch, row) for c, row in zip(self.conditioners, rows)])

    @property
    def divisor(self) -> int:
        """What the sides of latents must divide by."""
        return 2 ** (len(self.unet.mult) - 1)

    @nn.nowrap
    def init_params(self, key, x, t, fields):
        """Fresh parameters, shaped for arguments such as those of `__call__`."""
        return self.init(key, x, t, fields)["params"]

    @nn.nowrap
    def draw_drop(self, key, b: int, dropout: float):
        """[b, conditioners] bool, or [b] without any: which rows of a training batch get the null.

        Conditioners without a dropout of their own are dropped together, at the rate given here.
        """
        together = jax.random.bernoulli(key, dropout, (b,))
        draw = lambda i, p: jax.random.bernoulli(jax.random.fold_in(key, i), p, (b,))
        rates = [c.dropout for c in self.conditioners]
        columns = [together if p is None else draw(i, p) for i, p in enumerate(rates)]
        return jnp.stack(columns, axis=1) if columns else together

    def denoise(self, x, t, cond, train=False):
        """The UNet's output for a ready Cond: a sampler conditions once and denoises many times."""
        return self.unet(x, t, **cond._asdict(), train=train)

    @nn.nowrap
    def read_frozen(self) -> dict:
        """The collection "frozen": {"conditioners_<i>": tree} of those that have one."""
        found = {f"conditioners_{i}": c.read_frozen() for i, c in enumerate(self.conditioners)}
        return {name: params for name, params in found.items() if params}

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
