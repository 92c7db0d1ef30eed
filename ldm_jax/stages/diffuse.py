"""The second stage: a denoiser of latents with conditioners (Rombach et al. 2022, sec. 3.2-3.3).

    z = scale * encode(image)
    x_t = alpha_t z + sigma_t eps
    loss = |network(x_t, t, cond) - target|^2

`frozen` holds the first stage's weights and the scale: {"first_stage": tree, "scale": scalar}.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from ldm_jax.base import errors, registry
from ldm_jax.diffusion import grids, guidance, samplers
from ldm_jax.diffusion.process import Process
from ldm_jax.models.conditioners import Cond
from ldm_jax.models.denoiser import Denoiser
from ldm_jax.stages import api
from ldm_jax.stages.codec import Codec

DISTANCES = registry.Registry("loss distance")
DISTANCES.register("l2")(jnp.square)
DISTANCES.register("l1")(jnp.abs)

TIME_BANDS = 4  # evaluation looks at every image once in each quarter of the timesteps


@dataclasses.dataclass(frozen=True)
class Loss:
    """One field is one key of `config.loss`.

    distance: l2 or l1, per element; weight: a name of diffusion.loss_weights.
    cond_dropout: share of rows trained with the null condition, for classifier-free guidance.
    """

    distance: str
    weight: str
    cond_dropout: float


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How images are drawn; one field is one key of `config.sample`.

    sampler: a name of diffusion.methods, eta being ddim's; spacing: one of diffusion.grids.
    guidance: scale, 1 for none; rescale, interval: see `guidance.extrapolate`, `guidance.within`.
    """

    sampler: str = "ddim"
    steps: int = 50
    eta: float = 0.0
    guidance: float = 1.0
    spacing: str = "exact"
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        samplers.SAMPLERS.get(self.sampler)
        grids.GRIDS.get(self.spacing)
        guidance.check(self.rescale, self.interval)

    def grid(self, process: Process) -> grids.Grid:
        """The time grid; bad names and numbers are a UsageError."""
        return grids.GRIDS.get(self.spacing)(process, self.steps)

    def method(self, process: Process) -> samplers.Method:
        """What the sampler does at each network call."""
        return samplers.SAMPLERS.get(self.sampler)(self.grid(process), self.eta)

    def calls(self, process: Process) -> int:
        """Network calls for an image (NFE); classifier-free guidance doubles the batch of each."""
        return len(self.method(process))


@dataclasses.dataclass(frozen=True)
class Diffuse:
    """The second stage as a player. size: pixels of a side of the training images."""

    denoiser: Denoiser
    process: Process
    codec: Codec
    size: int
    loss: Loss | None = None
    sampling: Sampling | None = None

    def stage(self, frozen) -> api.Stage:
        """frozen: {"first_stage": tree, "scale": scalar}."""
        return api.Stage(
            fields=("image", *self.fields),
            players=(api.Player("denoiser", self.init, self.denoiser_loss),),
            frozen=frozen,
            evaluate=self.evaluate,
            draw=self.draw,
            columns={"samples": 8},
        )

    def init(self, key):
        x = jnp.zeros((1, *self.latent_shape(self.size, self.size)))
        fields = self.example(1, self.size, self.size)
        return self.denoiser.init(key, x, jnp.zeros((1,), jnp.int32), fields)["params"]

    @property
    def fields(self) -> tuple[str, ...]:
        """What the conditioners need of the data: an image in the place of every latent of one."""
        return tuple(self.denoiser.latent_of.get(name, name) for name in self.denoiser.fields)

    def example(self, b: int, height: int, width: int) -> dict:
        """Zeros in the shapes of the conditioners' fields; dropped, they are the null condition."""
        latent = (b, *self.latent_shape(height, width))
        return self.denoiser.example((b, height, width, 3), latent)

    def encode_fields(self, frozen, batch):
        """The batch, with those fields added that are latents (unscaled) of one of its images."""
        latents = {
            field: jax.lax.stop_gradient(self.codec.encode(frozen["first_stage"], batch[image]))
            for field, image in self.denoiser.latent_of.items()
            if image in batch
        }
        return batch | latents

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return height // self.codec.f, width // self.codec.f, self.codec.channels

    def encode(self, frozen, images, key=None):
        """[b, h, w, 3] -> the latents that the denoiser sees, scaled to unit variance."""
        return self.codec.encode(frozen["first_stage"], images, key) * frozen["scale"]

    def decode(self, frozen, z):
        """Undoes `encode`; [b, h, w, 3], not clipped."""
        return self.codec.decode(frozen["first_stage"], z / frozen["scale"])

    def denoiser_loss(self, params, frozen, batch, key, step, shared):
        """The weighted error of the prediction at one random timestep a row."""
        encode_key, t_key, eps_key, drop_key, dropout_key = jax.random.split(key, 5)
        # Gradients stop here: the first stage is frozen.
        z = jax.lax.stop_gradient(self.encode(frozen, batch["image"], encode_key))
        t = jax.random.randint(t_key, (len(z),), 0, self.process.timesteps)
        drop = jax.random.bernoulli(drop_key, self.loss.cond_dropout, (len(z),))
        eps = jax.random.normal(eps_key, z.shape)
        fields = self.encode_fields(frozen, batch)
        error = self._error(params, z, t, eps, fields, drop, dropout_key)
        return jnp.mean(self.process.weight(t, self.loss.weight) * error), (
            {"error": jnp.mean(error), "latent_std": jnp.std(z)},
            shared,
        )

    def evaluate(self, params, frozen, batch, key):
        """The unweighted error, [b], over all timesteps (`error`) and in each quarter of them."""
        z = self.encode(frozen, batch["image"])
        fields, bands = self.encode_fields(frozen, batch), {}
        for band in range(TIME_BANDS):
            t_key, eps_key = jax.random.split(jax.random.fold_in(key, band))
            low, high = (self.process.timesteps * i // TIME_BANDS for i in (band, band + 1))
            t = jax.random.randint(t_key, (len(z),), low, high)
            eps = jax.random.normal(eps_key, z.shape)
            bands[f"error_t{low}"] = self._error(params, z, t, eps, fields, jnp.zeros(len(z), bool))
        return {"error": sum(bands.values()) / TIME_BANDS} | bands

    def draw(self, params, frozen, batch, key):
        """Up to 32 samples under the conditions of the batch."""
        fields = {name: batch[name][:32] for name in self.fields}
        keys = jax.random.split(key, len(batch["image"][:32]))
        sample = functools.partial(self.sample, height=self.size, width=self.size)
        return {"samples": sample(params["denoiser"], frozen, keys, fields, sampling=self.sampling)}

    def sample(
        self,
        params,
        frozen,
        keys,
        fields=None,
        *,
        sampling: Sampling,
        height: int,
        width: int,
        cond: Cond | None = None,
        null: Cond | None = None,
        noise=None,
        latents: bool = False,
        guide_params=None,
    ):
        """Draws one image for each of `keys` [b]; image i depends on key i and condition i alone.

        Args:
          params: the denoiser's.
          fields: the conditioners' batch fields, [b, ...]; or `cond` (and `null`) ready made.
          noise: x_T, [b, h/f, w/f, c]; drawn from `keys` where not given.
          latents: return scaled latents instead of images.
          guide_params: a weaker checkpoint's, of the same shapes: guidance then leads away from it
            (autoguidance) instead of from the null condition.

        Returns:
          [b, height, width, 3], not clipped.
        """
        drop = jnp.zeros(len(keys), bool)
        fields = self.encode_fields(frozen, fields or {})
        ready, guided = cond, sampling.guidance != 1.0
        cond = self.condition(params, fields, drop) if ready is None else ready
        if noise is None:
            noise = samplers.initial_noise(keys, self.latent_shape(height, width))
        plain = functools.partial(self.predict_x0, params, cond=cond)
        denoise = plain
        if guided and guide_params is not None:
            weak = self.condition(guide_params, fields, drop) if ready is None else ready
            weaker = functools.partial(self.predict_x0, guide_params, cond=weak)
            denoise = guidance.autoguide(plain, weaker, sampling.guidance, sampling.rescale)
        elif guided:
            null = self.condition(params, fields, ~drop) if null is None else null
            network = functools.partial(self.predict_x0, params)
            denoise = guidance.guide(network, cond, null, sampling.guidance, sampling.rescale)
        denoise = guidance.within(denoise, plain, self.process.sigma, *sampling.interval)
        method = sampling.method(self.process)
        z = samplers.solve(method, denoise, noise, keys=keys)
        return z if latents else self.decode(frozen, z)

    def condition(self, params, fields, drop) -> Cond:
        """drop: [b] bool, True for the null condition."""
        return self.denoiser.apply({"params": params}, fields or {}, drop, method="condition")

    def predict(self, params, x_t, t, cond: Cond):
        """The raw network output at timesteps t [b]; [b, h, w, c]."""
        return self.denoiser.apply({"params": params}, x_t, t, cond, method="denoise")

    def predict_x0(self, params, x_t, t, cond: Cond):
        """The x_0 that the network's output implies, [b, h, w, c]."""
        return self.process.to_x0(self.predict(params, x_t, t, cond), x_t, t)

    def _error(self, params, z, t, eps, fields, drop, dropout_key=None):
        """Mean distance between prediction and target over h, w, c; [b]."""
        pred = self.denoiser.apply(
            {"params": params["denoiser"]},
            self.process.corrupt(z, t, eps),
            t,
            fields,
            drop,
            train=dropout_key is not None,
            rngs={} if dropout_key is None else {"dropout": dropout_key},
        )
        distance = DISTANCES.get(self.loss.distance)(pred - self.process.target(z, eps, t))
        return jnp.mean(distance, axis=(1, 2, 3))


def latent_statistics(codec: Codec, params, batches, key) -> dict:
    """Scale and moments of a data set's latents, sampled as in training, over all given batches.

    batches: iterable of images [b, h, w, 3]. The scale is 1 / std about the pooled mean of
    everything (the official code takes one batch on one process); `mean` and `std` are per channel.
    """
    encode = jax.jit(codec.encode)
    count, total, squares = 0, 0.0, 0.0
    for i, images in enumerate(batches):
        z = jax.device_get(encode(params, images, jax.random.fold_in(key, i))).astype("float64")
        count += z.size // z.shape[-1]
        total += z.sum((0, 1, 2))
        squares += (z**2).sum((0, 1, 2))
    if not count:
        raise errors.UsageError("No images to measure the latents' scale on.")
    mean = total / count
    std = (squares / count - mean**2).clip(0) ** 0.5
    pooled = (squares.mean() / count - mean.mean() ** 2) ** 0.5
    if not pooled > 0:
        raise errors.UsageError(
            "The latents are constant or not finite, so they have no scale; check the first stage "
            "and the data."
        )
    return {
        "scale": float(1 / pooled),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "latents": int(count),
    }
