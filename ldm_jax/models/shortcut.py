"""Paths beside a first stage's stack, which the stack only has to correct.

A stack that starts at random needs hundreds of steps to become as good as principal components.
With a linear path beside it that starts from these, it begins there. DC-AE's residual autoencoding
(Chen et al. 2024, arXiv 2410.10733) puts paths without parameters beside the stack for the same
reason. `config.model.shortcut` names a path; published models have none.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from ldm_jax.base import registry

SHORTCUTS = registry.Registry("shortcut")
ENDS = 0.1  # factor of the random kernels at the stack's two ends, where the path starts from data
# A path of at most so many inputs learns at the rate of the others. Adam moves every weight equally
# far, so that what leaves a wider one would move the further, the more inputs it has.
NARROW = 48


def patches(x, f: int):
    """Images [b, h, w, c] -> [b, h/f, w/f, f * f * c]."""
    return x if f == 1 else rearrange(x, "b (h i) (w j) c -> b h w (i j c)", i=f, j=f)


def images(p, f: int):
    """The inverse of `patches`."""
    return p if f == 1 else rearrange(p, "b h w (i j c) -> b (h i) (w j) c", i=f, j=f)


@SHORTCUTS.register("linear")
class Linear(nn.Module):
    """An affine map from patches of f x f pixels to the latent's channels, and one back.

    Both are float32. The parameters: mean [d], of patches; into [d, channels] and out
    [channels, d], for d = f * f * image_channels. shown: whether the decoder sees the path's image.
    folded: whether it stands beside the positions of the stack's lowest level, whose latents are
    then folded as the stack's are (`Autoencoder.fold`).
    """

    f: int
    channels: int
    image_channels: int = 3

    shown: ClassVar[bool] = False
    folded: ClassVar[bool] = False

    def setup(self):
        d, draw = self.f**2 * self.image_channels, nn.initializers.lecun_normal()
        self.mean = self.param("mean", nn.initializers.zeros, (d,))
        self.into = self.param("into", draw, (d, self.channels))
        self.out = self.param("out", draw, (self.channels, d))

    def encode(self, x):
        """[b, h, w, image_channels] -> [b, h/f, w/f, channels]."""
        return _product(patches(x, self.f) - self.mean, self.into)

    def decode(self, z):
        """[b, h/f, w/f, channels] -> [b, h, w, image_channels]."""
        return images(_product(z, self.out) + self.mean, self.f)


@SHORTCUTS.register("levels")
class Levels(Linear):
    """The same paths, and every level of the decoder sees the image of the second one.

    It then mends this image, the seams between patches above all, instead of guessing at it from
    the latents: the larger f, the more that is worth (docs/results.md).
    """

    shown: ClassVar[bool] = True


@SHORTCUTS.register("folded")
class Folded(Linear):
    """The paths of the lowest level's positions, each of which starts with latents of its own.

    A first stage of f = 4 whose 8 x 8 latents are folded to one has f = 32, and begins by learning
    one code for all places, not one for each (docs/first_stages.md).
    """

    folded: ClassVar[bool] = True


def started(params, measured: dict, positions: int = 1):
    """An autoencoder's parameters, started from data.

    measured: `mean`, `into` and `out` of its shortcut and, for a bottleneck that has one, the
      `codebook`. positions: so many of the path share a position of the latent; the maps around the
      latent then start as one map for all of them, each to latents of its own.
    """
    path, decoder = {name: measured[name] for name in ("mean", "into", "out")}, params["decoder"]
    into, out = params["to_latent"], params["from_latent"]
    scaled = lambda layer: layer | {"kernel": ENDS * layer["kernel"]}
    own = {
        "to_latent": scaled(_apart(into, positions, path["into"].shape[1])),
        "from_latent": _apart(out, positions, out["kernel"].shape[1] // positions),
        "decoder": decoder | {"conv_out": scaled(decoder["conv_out"])},
        "beside": path,
    }
    return params | own | {k: v for k, v in measured.items() if k == "codebook"}


def _apart(layer, positions: int, width: int):
    """A random map between folded positions, made block-diagonal, with the same block for each.

    Its kernel: [positions * n, moments * positions * width]. Inputs of a block are fewer, so that
    its entries are as much larger as its initialisation would have had them.
    """
    if positions == 1:
        return layer
    kernel = layer["kernel"]
    by_position = kernel.reshape(positions, len(kernel) // positions, -1, positions, width)
    block = by_position[0, :, :, 0] * positions**0.5
    apart = jnp.einsum("pq,nmw->pnmqw", jnp.eye(positions), block)
    return layer | {"kernel": apart.reshape(kernel.shape)}


def rates(params):
    """The factors of the learning rates of an autoencoder's parameters, all 1 but its path's."""
    inputs = len(params["beside"]["mean"])
    factors = jax.tree.map(lambda _: 1.0, params)
    return factors | {"beside": factors["beside"] | {"into": min(1.0, NARROW / inputs)}}


def _product(x, kernel):
    return jnp.matmul(jnp.asarray(x, jnp.float32), kernel, precision=jax.lax.Precision.HIGHEST)
