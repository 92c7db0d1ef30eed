"""Conditioners: from the batch's condition fields to what the denoiser takes.

A conditioner is a Linen module called with `(batch, drop)`: a dict of arrays, and [b] bool, the
rows to give the null condition (classifier-free guidance, Ho & Salimans 2022). Beside that it says:

    fields: what it reads from the batch.
    example(image, latent): fields that it accepts, zeros, for images and latents of these shapes
      ([b, h, w, 3] and [b, h/f, w/f, c]).
    latent_of: {field: image field}, those of its fields that the stage makes from an image of the
      batch with the first stage. Most have none.
    scaled: whether those have the denoiser's scale, or the first stage's own.
    told: those of its fields that say how is drawn, not what, by their name in `config.sample`: no
      data has them, the stage fills them in. Most have none; one that has some has `bounds`, too.
    vector_key: the field that is the width of its Cond.vector, "" where it makes none; 0 there is
      none, too. control_key: the same of its Cond.control.
    reader: the name of a function in the registry READERS of weights/readers.py. It takes the
      conditioner and returns its Linen collection "frozen": weights from elsewhere, which are never
      trained, averaged or saved with a run. Most have none.

A new kind of condition is one class here, one maker of its field in `data/` where the records do
not have it as it is (data/conditions.py), and one line in a config.
"""

import dataclasses
import functools
import itertools
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ldm_jax.base import errors, registry
from ldm_jax.base.values import Above0, Amount, Natural, Number, Positive, Positives, Share
from ldm_jax.models import transformer
from ldm_jax.nn import blocks

CONDITIONERS = registry.Registry("conditioner")


class Cond(NamedTuple):
    """What the denoiser takes beside x and t; every part may be absent.

    tokens: [b, n, d] for cross-attention, seen where mask [b, n] is True; vector: [b, d], added to
    the time embedding; concat: [b, h, w, c], channels appended to x; time: [b, d], added to the
    timestep's sinusoids, before its embedding; control: [b, h, w, d], which steers a copy of the
    backbone's encoder, whose outputs count control_scale [b] times.
    """

    tokens: jax.Array | None = None
    vector: jax.Array | None = None
    concat: jax.Array | None = None
    mask: jax.Array | None = None
    time: jax.Array | None = None
    control: jax.Array | None = None
    control_scale: jax.Array | None = None


class Conditioner(nn.Module):
    """The base class of conditioners, with the defaults of what others ask them.

    dropout: share of rows trained with this conditioner's null, drawn for it alone; None joins the
      draw of the loss's `cond_dropout`.
    dtype: of the computation.
    """

    dropout: Share | None = dataclasses.field(default=None, kw_only=True)
    dtype: Any = dataclasses.field(default=jnp.float32, kw_only=True)

    fields: ClassVar[tuple] = ()
    latent_of: ClassVar[dict] = {}
    scaled: ClassVar[bool] = False
    told: ClassVar[tuple] = ()
    vector_key: ClassVar[str] = ""
    control_key: ClassVar[str] = ""
    reader: ClassVar[str] = ""

    @nn.nowrap
    def check(self):
        """Raises UsageError for settings that cannot work; touches no file."""

    @nn.nowrap
    def check_factor(self, f: int):
        """Raises UsageError for settings that do not fit a first stage of this factor f."""


@CONDITIONERS.register("class")
class ClassEmbedder(Conditioner):
    """One embedding per class, and a last one for the null class. batch["class"]: int [b].

    As one token [b, 1, width] for cross-attention, or with `place="vector"` as [b, width], where
    width must be the backbone's `vector_width`, for a UNet 4 * its width. table_std: deviation that
    the embeddings start with.
    """

    num_classes: Natural  # -1 takes the data's
    width: Positive = 512  # of the embeddings
    place: Literal["tokens", "vector"] = "tokens"  # for cross-attention, or beside the timestep
    table_std: Amount = 1.0

    fields: ClassVar[tuple] = ("class",)

    @property
    def vector_key(self):
        return "width" if self.place == "vector" else ""

    @nn.nowrap
    def example(self, image, latent):
        return {"class": jnp.zeros(image[:1], jnp.int32)}

    @nn.compact
    def __call__(self, batch, drop):
        init = nn.initializers.normal(self.table_std)
        how = dict(embedding_init=init, dtype=self.dtype, name="table")
        table = nn.Embed(self.num_classes + 1, self.width, **how)
        emb = table(jnp.where(drop, self.num_classes, batch["class"]))
        return Cond(tokens=emb[:, None]) if self.place == "tokens" else Cond(vector=emb)


class TokenEmbedder(Conditioner):
    """A sequence of discrete tokens through a transformer, for cross-attention: [b, n, width].

    Its field holds int ids [b, n], n <= length, filled up with the id `pad`. Padding is not
    attended to, neither here nor by the denoiser; `mask_padding=False` attends to it, as the
    official models were trained. The null condition is the ids `null`, then padding. A row's first
    token is always attended to, so that an empty row has something to attend to.

    table_std: deviation that the embeddings start with. The official 0.02 is drowned by what the
      first layers add, so that a brief training cannot tell the words of a caption; 1 is heard.
    vector: width of the mean of the tokens as a vector beside the timestep, 4 * the UNet's; 0, as
      in the paper: none. A small network learns sooner when the condition reaches every block.
    """

    width: Positive  # of the tokens
    depth: Natural  # layers of the transformer
    vocab_size: Positive  # ids
    length: Positive  # tokens at most
    pad: Natural  # the id of padding
    null: tuple[Natural, ...]  # ids of the null condition
    heads: Positive = 8  # of attention
    head_width: Positive = 64  # channels of each head
    mask_padding: bool = True  # padding is not attended to
    vector: Natural = 0
    table_std: Above0 = 0.02
    remat: bool = False  # recompute the activations inside layers in the backward pass

    vector_key: ClassVar[str] = "vector"

    @nn.nowrap
    def example(self, image, latent):
        return {self.fields[0]: jnp.zeros((image[0], self.length), jnp.int32)}

    @nn.compact
    def __call__(self, batch, drop):
        self.check()
        ids = batch[self.fields[0]]
        null = np.array([*self.null, *[self.pad] * (self.length - len(self.null))], np.int32)
        ids = jnp.where(drop[:, None], null[: ids.shape[1]], ids)
        mask = (ids != self.pad).at[:, 0].set(True) if self.mask_padding else None
        block = blocks.layer(transformer.Block, self)
        own = blocks.same_fields(self, transformer.TokenTransformer)
        tokens = transformer.TokenTransformer(**own, block=block, name="transformer")(ids, mask)
        if not self.vector:
            return Cond(tokens=tokens, mask=mask)
        counted = jnp.ones(ids.shape) if mask is None else mask
        counted = jnp.broadcast_to(counted[..., None], tokens.shape)
        mean = jnp.average(tokens, axis=1, weights=counted)
        vector = blocks.dense(self.vector, "to_vector", dtype=self.dtype)(mean)
        return Cond(tokens=tokens, vector=vector, mask=mask)

    @nn.nowrap
    def check(self):
        check_ids(self, "pad", "null")
        if len(self.null) > self.length:
            raise errors.UsageError(
                f"null={self.null} has more ids than length={self.length}: give fewer."
            )


@CONDITIONERS.register("text")
class TextEmbedder(TokenEmbedder):
    """Captions as WordPiece ids of bert-base-uncased, 77 of them: batch["text_ids"].

    The null condition is the empty caption: [CLS] [SEP], then [PAD].
    """

    vocab_size: Positive = 30_522
    length: Positive = 77
    pad: Natural = 0
    null: tuple[Natural, ...] = (101, 102)

    fields: ClassVar[tuple] = ("text_ids",)


@CONDITIONERS.register("layout")
class LayoutEmbedder(TokenEmbedder):
    """Boxes and their classes as 92 tokens (30 objects of 3, 2 for the crop): batch["layout_ids"].

    8191 stands for a missing object; the null condition has no object and no crop.
    """

    vocab_size: Positive = 8192
    length: Positive = 92
    pad: Natural = 8191
    null: tuple[Natural, ...] = ()

    fields: ClassVar[tuple] = ("layout_ids",)


@CONDITIONERS.register("tokens")
class GivenTokens(Conditioner):
    """Embeddings computed beforehand, say CLIP's: batch["tokens"], [b, length, width].

    The null condition is zeros; a model trained on another null is given it when it is sampled.
    """

    length: Positive = 77  # tokens of a condition
    width: Positive = 768  # of each

    fields: ClassVar[tuple] = ("tokens",)

    @nn.nowrap
    def example(self, image, latent):
        return {"tokens": jnp.zeros((image[0], self.length, self.width))}

    def __call__(self, batch, drop):
        return Cond(tokens=_blank(batch["tokens"], drop).astype(self.dtype))


@CONDITIONERS.register("rescaler")
class SpatialRescaler(Conditioner):
    """A semantic map at the latents' resolution, concatenated to them: batch["segmentation"].

    Labels, int [b, h, w], become one-hot in `classes` channels, and a label outside them all zeros;
    a map [b, h, w, classes] is taken as it is. It is halved `stages` times, then mapped linearly to
    `channels` (0: not mapped). The null condition is zeros.

    method: bilinear (the mean of 2x2; an odd last row or column is dropped, as torch does), area
    (the same, even sizes only) or nearest.
    """

    stages: Annotated[int, Number(0, 16, whole=True)] = 2  # times that the map is halved
    classes: Positive = 182  # labels, from 0 on
    channels: Natural = 3  # that the halved map is mapped to; 0: it is not
    method: Literal["bilinear", "area", "nearest"] = "bilinear"
    bias: bool = False  # of that mapping

    fields: ClassVar[tuple] = ("segmentation",)

    @nn.nowrap
    def example(self, image, latent):
        return {"segmentation": jnp.zeros(image[:3], jnp.int32)}

    @nn.compact
    def __call__(self, batch, drop):
        x = batch["segmentation"]
        if jnp.issubdtype(x.dtype, jnp.integer):
            x = jax.nn.one_hot(x, self.classes, dtype=self.dtype)
        for _ in range(self.stages):
            x = self._halve(x.astype(self.dtype))
        if self.channels:
            x = blocks.dense(self.channels, "map", dtype=self.dtype, use_bias=self.bias)(x)
        return Cond(concat=_blank(x, drop))

    @nn.nowrap
    def _halve(self, x):
        h, w = x.shape[1:3]
        if self.method == "area" and (h % 2 or w % 2):
            raise ValueError(f"method='area' halves even sizes only, got {h}x{w}.")
        x = x[:, : h // 2 * 2, : w // 2 * 2]
        if self.method == "nearest":
            return x[:, ::2, ::2]
        return einops.reduce(x, "b (h i) (w j) c -> b h w c", "mean", i=2, j=2)


@CONDITIONERS.register("image")
class LowResolution(Conditioner):
    """An image on the grid of the latents, concatenated unchanged: super-resolution by f.

    batch["low_res"]: [b, h/f, w/f, channels] in [-1, 1]. The null condition is zeros, mid-grey.
    """

    channels: Positive = 3  # of the small image

    fields: ClassVar[tuple] = ("low_res",)

    @nn.nowrap
    def example(self, image, latent):
        return {"low_res": jnp.zeros((*latent[:3], self.channels))}

    def __call__(self, batch, drop):
        return Cond(concat=_blank(batch["low_res"], drop).astype(self.dtype))


@CONDITIONERS.register("inpaint")
class Inpainting(Conditioner):
    """Latents of the image with the hole blackened, and the mask, both concatenated.

    batch["masked_latents"]: [b, h/f, w/f, c], the mode, which the stage encodes from
    batch["masked_image"] [b, h, w, 3], -1 in the hole. batch["mask"]: [b, h, w, 1] or
    [b, h/f, w/f, 1], 1 in the hole and 0 elsewhere; it is brought to the latents' size by its
    nearest pixels, and to [-1, 1]. The null condition is latents of zero and a mask that is all
    hole. scaled: whether the masked latents have the denoiser's scale, as in Stable Diffusion;
    otherwise they have the first stage's own, as in the paper's model, whose scale is 1.
    """

    scaled: bool = False

    fields: ClassVar[tuple] = ("masked_latents", "mask")
    latent_of: ClassVar[dict] = {"masked_latents": "masked_image"}

    @nn.nowrap
    def example(self, image, latent):
        return {"masked_latents": jnp.zeros(latent), "mask": jnp.zeros((*image[:3], 1))}

    def __call__(self, batch, drop):
        latents, mask = batch["masked_latents"], batch["mask"]
        (h, w), (height, width) = latents.shape[1:3], mask.shape[1:3]
        if height % h or width % w:
            raise ValueError(f"A mask of {height}x{width} does not fit latents of {h}x{w}.")
        mask = 2.0 * mask[:, :: height // h, :: width // w] - 1.0
        mask = jnp.where(drop[:, None, None, None], 1.0, mask)
        x = jnp.concatenate([_blank(latents, drop), mask], axis=-1)
        return Cond(concat=x.astype(self.dtype))


@CONDITIONERS.register("scalar")
class ScalarEmbedder(Conditioner):
    """The scale of guidance, as a student of many is told it (Meng et al. 2023, arXiv 2210.03142).

    batch["guidance"]: float [b] -> Cond.time [b, width]: sinusoids of 1000 (scale - 1), then a
    dense layer without bias, zero at the start, so that a network that is new to it keeps its
    output. These are diffusers' `get_guidance_scale_embedding` and `time_embedding.cond_proj`.

    width: the backbone's `time_width`. features: sinusoids. bounds: (low, high), the scales that
    training shows, evenly; () where they are not known. There is no null: rows with the null
    condition are told theirs, too.
    """

    width: Positive
    features: Positive = 256
    bounds: tuple[Amount, ...] = ()

    fields: ClassVar[tuple] = ("guidance",)
    told: ClassVar[tuple] = ("guidance",)

    @nn.nowrap
    def example(self, image, latent):
        return {"guidance": jnp.ones(image[:1])}

    @nn.nowrap
    def check(self):
        if self.features < 4 or self.features % 2:
            raise errors.UsageError(f"features={self.features} must be even, and at least 4.")
        if self.bounds and not (len(self.bounds) == 2 and 0 <= self.bounds[0] < self.bounds[1]):
            raise errors.UsageError(
                f"bounds={self.bounds} must be () or (low, high) with 0 <= low < high."
            )

    @nn.compact
    def __call__(self, batch, drop):
        # Angles of thousands show the last digit of a frequency: these are rounded as diffusers'.
        half = self.features // 2
        step = np.float32(np.log(10_000.0)) / np.float32(half - 1)
        freqs = np.exp(np.float64(np.arange(half, dtype=np.float32) * -step)).astype(np.float32)
        angles = (batch["guidance"].astype(jnp.float32) - 1.0)[:, None] * 1000.0 * freqs
        features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        how = dict(dtype=self.dtype, kernel_init=blocks.ZERO_INIT, use_bias=False)
        return Cond(time=blocks.dense(self.width, "to_time", **how)(features))


@CONDITIONERS.register("control")
class Control(Conditioner):
    """A picture that says where things are, for a copy of the UNet's encoder (ControlNet).

    Zhang et al. 2023, arXiv 2302.05543. batch["hint"]: [b, h, w, channels] in [0, 1]; data/hints.py
    makes it. A small network brings it to the latents' grid, by a last convolution that starts at
    zero: Cond.control [b, h/f, w/f, width]. batch["conditioning_scale"]: [b], how often the copy's
    outputs count. The null condition counts them 0 times, which leaves the network without it;
    guidance has the same control on both of its sides, so training never drops it by default.

    width: the backbone's `control_width`. widths: of the small network, one for each halving and
    one before, so that f = 2^(their number - 1).
    """

    width: Positive
    widths: Positives = (16, 32, 96, 256)
    channels: Positive = 3  # of the hint
    dropout: Share | None = dataclasses.field(default=0.0, kw_only=True)

    fields: ClassVar[tuple] = ("hint", "conditioning_scale")
    told: ClassVar[tuple] = ("conditioning_scale",)
    bounds: ClassVar[tuple] = (1.0, 1.0)
    control_key: ClassVar[str] = "width"

    @nn.nowrap
    def check_factor(self, f):
        if 2 ** (len(self.widths) - 1) != f:
            raise errors.UsageError(
                f"widths={self.widths} shrink a hint by {2 ** (len(self.widths) - 1)}, and the "
                f"first stage shrinks by f={f}: give {f.bit_length()} of them."
            )

    @nn.nowrap
    def example(self, image, latent):
        hint = jnp.zeros((*image[:3], self.channels))
        return {"hint": hint, "conditioning_scale": jnp.ones(image[:1])}

    @nn.compact
    def __call__(self, batch, drop):
        conv = functools.partial(blocks.conv3x3, dtype=self.dtype)
        h = nn.silu(conv(self.widths[0], "conv_in")(batch["hint"].astype(self.dtype)))
        for i, (own, larger) in enumerate(itertools.pairwise(self.widths)):
            h = nn.silu(conv(own, f"conv_{2 * i}")(h))
            h = nn.silu(conv(larger, f"conv_{2 * i + 1}", stride=2)(h))
        control = conv(self.width, "conv_out", kernel_init=blocks.ZERO_INIT)(h)
        scale = jnp.where(drop, 0.0, batch["conditioning_scale"])
        return Cond(control=control, control_scale=scale)


def label_of(group: dict, field: str) -> str | None:
    """The first label in `config.conditioners` whose conditioner reads `field`, None without one.

    Labels are names that a recipe chooses.
    """
    reads = lambda label: field in CONDITIONERS.get(group[label]["name"]).fields
    return next(filter(reads, sorted(group)), None)


def num_classes(group: dict) -> int:
    """Classes of the conditioner that reads the batch's class; 0 without one."""
    label = label_of(group, "class")
    return group[label].get("num_classes", 0) if label else 0


def merge(conds):
    """One Cond of many: tokens joined on their axis, concat on channels, vectors and times added.

    There is one control at most. Masks are joined like the tokens; tokens without a mask, beside
    others with one, are all seen.
    """
    given = lambda part: [x for c in conds if (x := getattr(c, part)) is not None]
    join = lambda arrays, axis: jnp.concatenate(arrays, axis) if arrays else None
    seen = lambda c: jnp.ones(c.tokens.shape[:2], bool) if c.mask is None else c.mask
    added = lambda arrays: sum(arrays[1:], arrays[0]) if arrays else None
    return Cond(
        tokens=join(given("tokens"), 1),
        vector=added(given("vector")),
        concat=join(given("concat"), -1),
        mask=join(given("mask") and [seen(c) for c in conds if c.tokens is not None], 1),
        time=added(given("time")),
        control=added(given("control")),
        control_scale=added(given("control_scale")),
    )


def check_ids(conditioner, *names):
    """Raises UsageError for a field, an id or a tuple of ids, that is outside the vocabulary.

    Nothing else would: under jit an id that the table lacks does not raise.
    """
    size = conditioner.vocab_size
    for name in names:
        ids = getattr(conditioner, name)
        if not all(0 <= i < size for i in np.ravel(ids)):
            raise errors.UsageError(f"{name}={ids}: give ids from 0 on, below vocab_size={size}.")


def _blank(x, drop):
    """Zeros in the dropped rows. x: [b, ...], drop: [b] bool."""
    return jnp.where(drop.reshape(-1, *[1] * (x.ndim - 1)), 0, x)
