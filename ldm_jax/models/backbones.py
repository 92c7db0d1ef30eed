"""Backbones: the networks that denoise.

A backbone is a Linen module, registered by its name in `config.model.name`, whose fields are the
other keys of `config.model` and which is called as

    (x [b, h, w, c], t [b], tokens, vector, concat, mask, time, control, control_scale, train)
        -> [b, h, w, out_channels]

with those parts of a `conditioners.Cond` that are there. Another backbone is one file: it inherits
`Backbone` and overrides what differs.
"""

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn

from ldm_jax.base import registry
from ldm_jax.models import parallel

BACKBONES = registry.Registry("backbone")
CONTROL = "control"  # where a backbone has the parameters of its copy that a control steers


class Backbone(nn.Module):
    """The base class of backbones, with the defaults of what others ask them.

    Attributes:
      rules: which of its weights go over the mesh axis `tensor`, see base/shard.py.
      divisor: what the sides of its input have to divide by.
      one_size: it takes inputs of the size that it was trained on, and of no other; larger pictures
        are drawn in tiles of that size.
      width_unit: a sweep that looks for a width tries multiples of this.
      vector_width: the width of the vector that it adds to the timestep's embedding; 0: it takes no
        vector.
      time_width: the width of its sinusoids of the timestep, which `time` is added to; 0: it takes
        none.
      control_width: the channels of the `control` that it takes; 0: it takes none.
    """

    out_channels: int = 3
    dtype: Any = jnp.float32

    rules: ClassVar[tuple] = parallel.RULES
    divisor: ClassVar[int] = 1
    one_size: ClassVar[bool] = False
    width_unit: ClassVar[int] = 1
    vector_width: ClassVar[int] = 0
    time_width: ClassVar[int] = 0
    control_width: ClassVar[int] = 0

    @nn.nowrap
    def check(self):
        """Raises UsageError for fields that contradict one another."""
