"""Learning something new while the rest stays: prior preservation by the base's own predictions.

DreamBooth (Ruiz et al. 2023, arXiv 2208.12242, sec. 3.3) trains on pictures of the old kind beside
the new ones. Here these rows, and all with the null condition, learn in the place of the data what
the base predicts at the same x_t and t: this is without noise, and nothing pulls before the weights
have moved. So it is knowledge distillation for not forgetting (Li & Hoiem 2016, arXiv 1606.09282).
"""

import dataclasses

import jax
import jax.numpy as jnp

from ldm_jax.stages import adapt
from ldm_jax.stages.diffuse import Diffuse

FIELD = "part"  # of a batch: int32 [b], the part of a mix that a row is from


@dataclasses.dataclass(frozen=True)
class Kept(Diffuse):
    """A second stage whose rows of one part of a mix, and null rows, learn what its base predicts.

    part: its number. weight: how many times such a row counts. frozen[adapt.BASE]: the base's
      parameters. Evaluation is a second stage's.
    """

    part: int = 0
    weight: float = 1.0

    def stage(self, frozen):
        stage = super().stage(frozen)
        return dataclasses.replace(stage, fields=(*stage.fields, FIELD))

    def predicted(self, params, z, t, eps, fields, drop, dropout_key=None, frozen=None):
        pred, target = super().predicted(params, z, t, eps, fields, drop, dropout_key, frozen)
        x_t, base = self.process.corrupt(z, t, eps), {"denoiser": frozen[adapt.BASE]}
        theirs = self.predict_trained(base, x_t, t, fields, drop, frozen=frozen)
        kept = self._kept(fields, drop)[:, None, None, None]
        return pred, jnp.where(kept, jax.lax.stop_gradient(theirs), target)

    def counted(self, fields, drop):
        return jnp.where(self._kept(fields, drop), self.weight, 1.0)

    def error_at(self, params, z, t, eps, fields, drop, dropout_key=None, frozen=None):
        pred, target = super().predicted(params, z, t, eps, fields, drop, dropout_key, frozen)
        return self._error(pred - target)

    def _kept(self, fields, drop):
        """[b] bool. drop: [b, conditioners], or [b] without any."""
        return (fields[FIELD] == self.part) | drop.reshape(len(drop), -1).all(-1)
