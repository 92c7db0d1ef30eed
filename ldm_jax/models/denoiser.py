"""The network that the second stage trains: a backbone and its conditioners."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ldm_jax.base import errors, upgrade
from ldm_jax.models import conditioners
from ldm_jax.models.backbones import Backbone
from ldm_jax.nn import variables


class Denoiser(nn.Module):
    """A backbone and conditioners; without any of these, unconditional.

    Each is given with the name under which its parameters stand, the backbone with that of
    `config.model.name` and a conditioner with "conditioners_<label>". Conditioners that have
    weights from elsewhere need them as the collection "frozen".
    """

    backbone: Backbone
    conditioners: tuple = ()

    preserve_adopted_names = True  # of the modules given

    def __call__(self, x, t, batch=None, drop=None, train=False):
        """x: [b, h, w, c], t: [b], batch: fields by name, drop: see `condition` -> like x."""
        drop = jnp.zeros(x.shape[:1], bool) if drop is None else drop
        return self.denoise(x, t, self.condition(batch or {}, drop), train)

    def condition(self, batch, drop):
        """The conditioners' outputs, merged into one Cond.

        drop: [b] bool, True for the null condition; or [b, conditioners], for each its own.
        """
        drop = drop if drop.ndim == 2 else drop[:, None]
        rows = jnp.broadcast_to(drop, (len(drop), len(self.conditioners))).T
        return conditioners.merge([c(batch, row) for c, row in zip(self.conditioners, rows)])

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

    @nn.nowrap
    def drop_of(self, other, drop):
        """Of another denoiser that reads some of the same fields, what `drop` is of this one."""
        if drop.ndim == 1:
            return drop
        own = [set(conditioner.fields) for conditioner in self.conditioners]
        columns = [
            next(i for i, fields in enumerate(own) if fields >= set(conditioner.fields))
            for conditioner in other.conditioners
        ]
        return drop[:, np.array(columns, int)]

    def draw_told(self, key, b: int) -> dict:
        """{field: [b]} of what rows of a training batch are told, where its bounds are known."""
        bounds = {field: c.bounds for c in self.conditioners for field in c.told if c.bounds}
        return {
            field: jax.random.uniform(jax.random.fold_in(key, i), (b,), minval=low, maxval=high)
            for i, (field, (low, high)) in enumerate(bounds.items())
        }

    def denoise(self, x, t, cond, train=False):
        """The backbone's output for a ready Cond: a sampler conditions once, and denoises often."""
        given = {part: value for part, value in cond._asdict().items() if value is not None}
        name, wide = type(self.backbone).__name__, self.backbone.vector_width
        if cond.vector is not None and cond.vector.shape[-1] != wide:
            raise errors.UsageError(
                f"The conditioners give a vector of {cond.vector.shape[-1]} numbers, and the "
                f"backbone {name} takes one of {wide}: its vector_width."
            )
        out = self.backbone(x, t, **given, train=train)
        if out.shape != (wanted := (*x.shape[:-1], self.backbone.out_channels)):
            # A loss would broadcast it, and train.
            raise errors.UsageError(
                f"The backbone {name} returns {out.shape} for an input of {x.shape}: make it "
                f"{wanted}."
            )
        return out

    @nn.nowrap
    def initial(self, key, x, t, fields) -> dict:
        """{"params": ..., and "frozen" where conditioners have weights from elsewhere}.

        A conditioner's first parameters depend on its number among the labels, as they did when
        parameters were named by it (base/upgrade.py), and not on the label.
        """
        numbered = [c.clone(name=f"{upgrade.PREFIX}{i}") for i, c in enumerate(self.conditioners)]
        names = {c.name: own.name or c.name for c, own in zip(numbered, self.conditioners)}
        first = variables.initial(self.clone(conditioners=tuple(numbered)), key, x, t, fields)
        return upgrade.renamed(first, names)

    @property
    def fields(self):
        """The batch fields that the conditioners read."""
        return tuple(field for conditioner in self.conditioners for field in conditioner.fields)

    @property
    def told(self):
        """Those of them that say how is drawn, which the stage fills in."""
        return tuple(field for conditioner in self.conditioners for field in conditioner.told)

    @property
    def latent_of(self):
        """{field: image field} of the fields that are latents of an image of the batch."""
        return {k: v for conditioner in self.conditioners for k, v in conditioner.latent_of.items()}

    @property
    def scaled(self) -> set:
        """Those of `latent_of` that have the denoiser's scale, not the first stage's own."""
        own = (conditioner for conditioner in self.conditioners if conditioner.scaled)
        return {field for conditioner in own for field in conditioner.latent_of}

    @nn.nowrap
    def example(self, image, latent):
        """Zero fields for images [b, h, w, 3] and latents [b, h/f, w/f, c] of these shapes."""
        return {k: v for c in self.conditioners for k, v in c.example(image, latent).items()}
