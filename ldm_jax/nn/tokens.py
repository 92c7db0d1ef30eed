"""Images as sequences of patches, and back, for transformers."""

import einops
from flax import linen as nn


def grid(x, patch: int) -> tuple[int, int]:
    """How many patches the rows and columns of x [b, h, w, c] make."""
    for side in x.shape[1:3]:
        if side % patch:
            nearest = max(round(side / patch), 1) * patch
            raise ValueError(
                f"A transformer of patch={patch} takes sides that divide by it; got {side}, "
                f"nearest: {nearest}."
            )
    return x.shape[1] // patch, x.shape[2] // patch


def cut(x, patch: int, width: int, **how):
    """[b, h, w, c] -> [b, n, width], row by row, by the calling module's convolution `patch_in`."""
    sides = (patch, patch)
    x = nn.Conv(width, sides, sides, "VALID", name="patch_in", **how)(x)
    return einops.rearrange(x, "b h w d -> b (h w) d")


def joined(x, h: int, w: int, patch: int):
    """[b, h * w, patch**2 * c], row by row -> [b, h * patch, w * patch, c]."""
    sides = dict(h=h, w=w, p=patch, q=patch)
    return einops.rearrange(x, "b (h w) (p q c) -> b (h p) (w q) c", **sides)
