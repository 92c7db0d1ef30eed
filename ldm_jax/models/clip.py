"""CLIP's text transformer as a conditioner with frozen weights (Radford et al. 2021).

As Stable Diffusion conditions (Rombach et al. 2022, model card of v1): the last hidden states of
ViT-L/14's text side. The weights are the Linen collection "frozen", which no optimizer sees and no
checkpoint keeps; weights/clip.py reads them from Hugging Face's or OpenAI's file.
"""

from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ldm_jax.base import errors
from ldm_jax.base.values import Natural, Number, Positive
from ldm_jax.models.conditioners import CONDITIONERS, Cond, Conditioner, check_ids
from ldm_jax.models.transformer import TokenTransformer
from ldm_jax.nn.blocks import dense, layer, same_fields

ACTIVATIONS = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),  # OpenAI's models
    "gelu": lambda x: nn.gelu(x, approximate=False),  # OpenCLIP's, in Stable Diffusion 2
}


class Block(nn.Module):
    """A layer of CLIP or DINOv2: self-attention, then an MLP, each after its norm. x: [b, n, d].

    layer_scale: whether what is added to x is scaled by learned factors (Touvron et al. 2021).
    """

    heads: int
    activation: str
    causal: bool = True
    epsilon: float = 1e-5
    layer_scale: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        b, n, d = x.shape
        norm = lambda i: nn.LayerNorm(self.epsilon, dtype=self.dtype, name=f"norm_{i}")
        h = norm(1)(x)
        parts = (dense(d, name, dtype=self.dtype)(h) for name in "qkv")
        q, k, v = (part.reshape(b, n, self.heads, -1) for part in parts)
        h = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal)
        h = dense(d, "out", dtype=self.dtype)(h.reshape(b, n, d))
        x = x + self._scaled(1, h)
        h = dense(4 * d, "mlp_in", dtype=self.dtype)(norm(2)(x))
        h = dense(d, "mlp_out", dtype=self.dtype)(ACTIVATIONS[self.activation](h))
        return x + self._scaled(2, h)

    def _scaled(self, i, h):
        """What is added to x, by the learned factors of its place where there are any."""
        if not self.layer_scale:
            return h
        ones = nn.initializers.ones
        return h * self.param(f"scale_{i}", ones, h.shape[-1:]).astype(self.dtype)


@CONDITIONERS.register("clip")
class ClipText(Conditioner):
    """Captions as CLIP's byte-pair ids, 77 of them: batch["clip_ids"] -> tokens [b, 77, width].

    The null condition is the empty caption, as Stable Diffusion was trained: `start`, `end`, then
    padding. The denoiser does not attend to padding, which is all that comes after the first `end`;
    with `mask_padding=False` it does, as in the official models.

    weights: a .safetensors or torch file, the folder of one, or a name: clip:l14, hf:OWNER/NAME.
    The defaults are ViT-L/14's.
    """

    weights: str = ""
    vocab_size: Positive = 49_408  # ids
    length: Annotated[int, Number(2, 2**14, whole=True)] = 77  # tokens of a caption
    width: Positive = 768  # of the tokens
    depth: Positive = 12  # layers
    heads: Positive = 12  # of attention
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"  # of the MLPs
    start: Natural = 49_406  # the id before a caption
    end: Natural = 49_407  # the id behind it
    pad: Natural = 49_407  # the id of padding
    mask_padding: bool = True  # padding is not attended to

    fields: ClassVar[tuple] = ("clip_ids",)
    reader: ClassVar[str] = "clip"

    @nn.nowrap
    def check(self):
        if not self.weights:
            raise errors.UsageError(
                "weights is empty: give a text encoder's, a file or "
                "hf:openai/clip-vit-large-patch14."
            )
        check_ids(self, "start", "end", "pad")

    @nn.nowrap
    def example(self, image, latent):
        return {"clip_ids": jnp.zeros((image[0], self.length), jnp.int32)}

    @nn.compact
    def __call__(self, batch, drop):
        null = np.array([self.start, self.end, *[self.pad] * (self.length - 2)], np.int32)
        ids = jnp.where(drop[:, None], null, batch["clip_ids"])
        encoder = self.encoder()
        # The caller of `apply` passes this collection; `init` only makes arrays of its shapes.
        start = lambda: encoder.init(jax.random.key(0), ids)["params"]
        params = self.variable("frozen", "encoder", start).value
        tokens = jax.lax.stop_gradient(encoder.apply({"params": params}, ids))
        ended = ids == self.end
        mask = jnp.cumsum(ended, axis=1) - ended == 0  # the first `end` itself is seen
        return Cond(tokens=tokens, mask=mask if self.mask_padding else None)

    @nn.nowrap
    def encoder(self) -> TokenTransformer:
        own = same_fields(self, TokenTransformer)
        return TokenTransformer(**own, block=layer(Block, self), parent=None)
