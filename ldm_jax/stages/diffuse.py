"""The second stage: a denoiser of latents with conditioners (Rombach et al. 2022, sec. 3.2-3.3).

    z = scale * encode(image)                    (stages/scaling.py)
    x_t = alpha_t z + sigma_t eps
    loss = |network(x_t, t, cond) - target|^2, and further terms (stages/thumbnails.py)

`frozen` holds the first stage's weights and the latents' scale: {"first_stage": tree, "scale":
scalar}, or for every channel its own, {"scale": [c], "shift": [c]}. It also holds "conditioners",
the weights of those that have some from elsewhere, and for sampling "guide", the parameters of a
weaker denoiser of the same shapes, where there are any.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.base import errors, registry
from ldm_jax.diffusion import editing, guidance, samplers
from ldm_jax.diffusion.loss_weights import WEIGHTS
from ldm_jax.diffusion.process import Process
from ldm_jax.models.conditioners import Cond
from ldm_jax.models.denoiser import Denoiser
from ldm_jax.stages import api, coarse, scaling, thumbnails
from ldm_jax.stages.codec import Codec
from ldm_jax.stages.sampling import Sampling

DISTANCES = registry.Registry("loss distance")
DISTANCES.register("l2")(jnp.square)
DISTANCES.register("l1")(jnp.abs)

TIME_BANDS = 4  # evaluation looks at every image once in each quarter of the timesteps


@dataclasses.dataclass(frozen=True)
class Loss:
    """One field is one key of `config.loss`.

    distance: l2 or l1, per element; weight: a name of diffusion.loss_weights, of whose options
      gamma and cap are, and those of a weight of one's own in `options`.
    cond_dropout: share of rows trained with the null condition, for classifier-free guidance, by
      the conditioners that have no `dropout` of their own.
    elbo_weight: on the variational bound, added to that (the official `original_elbo_weight`).
    learn_logvar: learn the log variance of every timestep's error, from `logvar`; otherwise it
      stays there. logvar_features: 0 learns a number per timestep, as the official code does; N
      learns a linear map of N Fourier features, which is smooth in t, and so settles within a short
      training (Karras et al. 2024, arXiv 2312.02696, appendix B).
    terms: {name in thumbnails.TERMS: weight}, added to the denoiser's loss; each is logged as
      term_NAME, without its weight.
    """

    distance: str
    weight: str
    cond_dropout: float
    elbo_weight: float = 0.0
    logvar: float = 0.0
    learn_logvar: bool = False
    logvar_features: int = 0
    gamma: float = 5.0
    cap: float = 400.0
    terms: dict = dataclasses.field(default_factory=dict)
    options: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        DISTANCES.get(self.distance)
        thumbnails.named(self.terms)
        WEIGHTS.taken(self.weight, **self.weighing)
        if self.logvar_features < 0 or (self.logvar_features and not self.learn_logvar):
            raise errors.UsageError(
                f"logvar_features={self.logvar_features} must be 0, or above 0 with "
                "learn_logvar=True."
            )

    @property
    def weighing(self) -> dict:
        """The options of weights."""
        return {"gamma": self.gamma, "cap": self.cap, **self.options}


@dataclasses.dataclass(frozen=True)
class Diffuse:
    """The second stage as a player.

    size: pixels of a side of the training images. total: training steps, which terms may go by.
    """

    denoiser: Denoiser
    process: Process
    codec: Codec
    size: int
    loss: Loss | None = None
    sampling: Sampling | None = None
    total: int = 1

    def check(self):
        """Raises UsageError for a weight that lets some timestep go untrained, or has no bound."""
        if coarse.wanted(self):
            coarse.check(self)
        own = self.process.weights(self.loss.weight, **self.loss.weighing)
        tables = {"weight": (self.loss.weight, own)}
        if self.loss.elbo_weight:
            tables["elbo_weight"] = (self.loss.elbo_weight, self.process.weights("vlb"))
        for name, (value, table) in tables.items():
            if np.shape(table) != (self.process.timesteps,):
                raise errors.UsageError(
                    f"{name}={value!r} is a table of shape {np.shape(table)}: it needs a number "
                    f"for each of the {self.process.timesteps} timesteps."
                )
            trained = self.process.shares > 0
            if len(bad := np.flatnonzero(trained & ~((table > 0) & (table < np.inf)))):
                raise errors.UsageError(
                    f"{name}={value!r} gives timestep {bad[-1]} of process.schedule="
                    f"{self.process.schedule!r} the weight {table[bad[-1]]:g}: take another one."
                )

    def stage(self, frozen) -> api.Stage:
        """frozen: see the module."""
        helpers = (coarse.player(self),) if coarse.wanted(self) else ()
        return api.Stage(
            fields=("image", *self.fields),
            players=(*helpers, api.Player("denoiser", self.init, self.denoiser_loss)),
            frozen=frozen,
            evaluate=self.evaluate,
            draw=self.draw,
            columns={"samples": 8},
            watched="error",
            rules=self.denoiser.backbone.rules,
        )

    def initial(self, key, shape=()) -> dict:
        """The denoiser's first variables; see Denoiser.initial. shape: of what it denoises."""
        x = jnp.zeros((1, *(shape or self.latent_shape(self.size, self.size))))
        fields = self.example(1, self.size, self.size) | self.tell(1)
        return self.denoiser.initial(key, x, jnp.zeros((1,), jnp.int32), fields)

    def init(self, key):
        params = self.initial(key)["params"]
        if self.loss and self.loss.learn_logvar:
            size, start = self.process.timesteps, self.loss.logvar
            if self.loss.logvar_features:
                size, start = self.loss.logvar_features, 0.0
            params["logvar"] = jnp.full((size,), start)
        return params

    @property
    def fields(self) -> tuple[str, ...]:
        """What the conditioners need of the data: an image in the place of every latent of one."""
        own = (name for name in self.denoiser.fields if name not in self.denoiser.told)
        return tuple(self.denoiser.latent_of.get(name, name) for name in own)

    def example(self, b: int, height: int, width: int) -> dict:
        """Zeros in the shapes of all fields but told ones; dropped, they are the null condition."""
        latent = (b, *self.latent_shape(height, width))
        fields = self.denoiser.example((b, height, width, 3), latent)
        return {name: zeros for name, zeros in fields.items() if name not in self.denoiser.told}

    def tell(self, b: int, sampling: Sampling | None = None) -> dict:
        """{field: [b]} of what the denoiser is told, by default as the run itself draws."""
        how = sampling or self.sampling
        return {name: jnp.full((b,), float(getattr(how, name))) for name in self.denoiser.told}

    def left(self, sampling: Sampling) -> Sampling:
        """What of it is not told: guidance that is takes no second row of each call."""
        told = "guidance" in self.denoiser.told
        return dataclasses.replace(sampling, guidance=1.0) if told else sampling

    def encode_fields(self, frozen, batch):
        """The batch, with those fields added that are latents of one of its images."""

        def encoded(field, image):
            latents = self.codec.encode(frozen["first_stage"], batch[image])
            latents = scaling.scaled(frozen, latents) if field in self.denoiser.scaled else latents
            return jax.lax.stop_gradient(latents)

        given = {k: image for k, image in self.denoiser.latent_of.items() if image in batch}
        return batch | {field: encoded(field, image) for field, image in given.items()}

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return height // self.codec.f, width // self.codec.f, self.codec.channels

    @property
    def divisor(self) -> int:
        """What the sides of an image must divide by: f times what latents must divide by."""
        return self.codec.f * self.denoiser.backbone.divisor

    def encode(self, frozen, images, key=None):
        """[b, h, w, 3] -> the latents that the denoiser sees, scaled to unit variance."""
        return scaling.scaled(frozen, self.codec.encode(frozen["first_stage"], images, key))

    def decode(self, frozen, z):
        """Undoes `encode`; [b, h, w, 3], not clipped."""
        return self.codec.decode(frozen["first_stage"], scaling.unscaled(frozen, z))

    def denoiser_loss(self, params, frozen, batch, key, step, shared):
        """The weighted error of the prediction at one random timestep a row."""
        z, t, eps, *given = self.draw_training(frozen, batch, key)
        pred, target = self.predicted(params, z, t, eps, *given, frozen)
        loss, error = self.weighed(params, pred - target, t, self.counted(*given[:2]))
        more, terms = thumbnails.total(
            self.loss.terms,
            pred - target,
            pred=pred,
            small=functools.partial(thumbnails.small, frozen),
            coarse=shared.get("coarse"),
            sigma=self.process.sigma(t),
            left=1 - step / self.total,
        )
        metrics = {"error": jnp.mean(error), "latent_std": jnp.std(z)} | terms
        return loss + jnp.mean(more), (metrics, shared)

    def draw_training(self, frozen, batch, key):
        """(z, t, eps, fields, drop, key of dropout) of a batch: what a step trains at."""
        encode_key, t_key, eps_key, drop_key, dropout_key = jax.random.split(key, 5)
        # Gradients stop here: the first stage is frozen.
        z = self.codec.encode_batch(frozen["first_stage"], batch, encode_key)
        z = jax.lax.stop_gradient(scaling.scaled(frozen, z))
        t = self.process.draw_times(t_key, (len(z),))
        drop = self.denoiser.draw_drop(drop_key, len(z), self.loss.cond_dropout)
        eps = jax.random.normal(eps_key, z.shape)
        told = self.denoiser.draw_told(jax.random.fold_in(key, 5), len(z))  # beside those five
        return z, t, eps, self.encode_fields(frozen, batch) | told, drop, dropout_key

    def loss_at(self, params, z, t, eps, fields, drop, dropout_key=None, frozen=None):
        """The loss at given timesteps and noise, a scalar, and the error of every row, [b].

        With its log variance s_t: weight_t error / exp(s_t) + s_t + elbo_weight vlb_t error.
        """
        pred, target = self.predicted(params, z, t, eps, fields, drop, dropout_key, frozen)
        return self.weighed(params, pred - target, t)

    def counted(self, fields, drop):
        """How many times each row counts in training, [b]; None: once."""
        return None

    def weighed(self, params, difference, t, counted=None):
        """As `loss_at`, of the difference of prediction and target, [b, h, w, c]."""
        error, weight = self._error(difference), functools.partial(self.process.weight, t)
        logvar = self.logvar_at(params, t)
        main = weight(self.loss.weight, **self.loss.weighing)
        loss = main * error / jnp.exp(logvar) + logvar
        if self.loss.elbo_weight:
            loss += self.loss.elbo_weight * weight("vlb") * error
        return jnp.mean(loss if counted is None else counted * loss), error

    def logvar_at(self, params, t):
        """The log variance of the error at timesteps t, [b]."""
        fixed = jnp.full((self.process.timesteps,), self.loss.logvar)
        learned = params["denoiser"].get("logvar", fixed)
        if self.loss.logvar_features:
            features = jnp.float32(self.process.features(self.loss.logvar_features))
            return self.loss.logvar + features[t] @ learned
        return learned[t]

    def error_at(self, params, z, t, eps, fields, drop, dropout_key=None, frozen=None):
        """Mean distance between prediction and target over h, w, c; [b]."""
        pred, target = self.predicted(params, z, t, eps, fields, drop, dropout_key, frozen)
        return self._error(pred - target)

    def predicted(self, params, z, t, eps, fields, drop, dropout_key=None, frozen=None):
        """(prediction, target) at given timesteps and noise, [b, h, w, c] each."""
        x_t = self.process.corrupt(z, t, eps)
        pred = self.predict_trained(params, x_t, t, fields, drop, dropout_key, frozen)
        return pred, self.process.target(z, eps, t)

    def _error(self, difference):
        return jnp.mean(DISTANCES.get(self.loss.distance)(difference), axis=(1, 2, 3))

    def predict_trained(self, params, x_t, t, fields, drop, dropout_key=None, frozen=None):
        """The network's output with its conditioners', which train too; {player: tree} as params.

        dropout_key: of the network's dropout, None for none.
        """
        return self.denoiser.apply(
            {"params": params["denoiser"], **_collection(frozen)},
            x_t,
            t,
            self.tell(len(x_t)) | fields,
            drop,
            train=dropout_key is not None,
            rngs={} if dropout_key is None else {"dropout": dropout_key},
        )

    def evaluate(self, params, frozen, batch, key):
        """The unweighted error, [b], over all timesteps (`error`) and in each quarter of them."""
        error_at = functools.partial(self.error_at, params, frozen=frozen)
        return self.in_bands(error_at, frozen, batch, key)

    def in_bands(self, error_at, frozen, batch, key) -> dict:
        """An error, [b], over all timesteps (`error`) and in each quarter (`error_t0`, ...).

        Latents are drawn from the posterior, as in training, so their noise counts here too.
        error_at: (z, t, eps, fields, drop) -> [b].
        """
        z = self.encode(frozen, batch["image"], jax.random.fold_in(key, TIME_BANDS))
        fields, bands = self.encode_fields(frozen, batch), {}
        for band in range(TIME_BANDS):
            t_key, eps_key = jax.random.split(jax.random.fold_in(key, band))
            low, high = (self.process.timesteps * i // TIME_BANDS for i in (band, band + 1))
            t = jax.random.randint(t_key, (len(z),), low, high)
            eps = jax.random.normal(eps_key, z.shape)
            bands[f"error_t{low}"] = error_at(z, t, eps, fields, jnp.zeros(len(z), bool))
        return {"error": sum(bands.values()) / TIME_BANDS} | bands

    def draw(self, params, frozen, batch, key):
        """Up to 32 samples under the conditions of the batch."""
        fields = {name: batch[name][:32] for name in self.fields}
        keys = jax.random.split(key, len(batch["image"][:32]))
        how = dict(sampling=self.sampling, height=self.size, width=self.size)
        z = self.sample(params["denoiser"], frozen, keys, fields, **how)
        return {"samples": self.render(frozen, z, self.sampling)}

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
        init=None,
        mask=None,
        trace: bool = False,
        seen=None,
    ):
        """Draws the scaled latents of one image for each of `keys` [b]; `render` shows them.

        Image i depends on key i and condition i alone.

        Args:
          params: the denoiser's. frozen["guide"]: a weaker one's, see `guided`.
          fields: the conditioners' batch fields, [b, ...]; or ready made `cond`, and `null`, what
            guidance leads away from.
          noise: [b, h/f, w/f, c] of variance 1, to begin from; drawn from `keys` where not given.
          init: scaled latents to begin from, noised to the first level of the sampling's grid.
          mask: [b, h/f, w/f, 1]: where it is 0 the result is `init` (inpainting).
          trace: return (latents, {"x": [calls, b, ...], "x_0": [calls, b, ...]}), the path to them.
          seen: called with what is predicted on the way, see samplers.solve.

        Returns:
          [b, h/f, w/f, c].
        """
        fields, drop = self.encode_fields(frozen, fields or {}), jnp.zeros(len(keys), bool)
        fields, sampling = fields | self.tell(len(keys), sampling), self.left(sampling)
        if noise is None:
            noise = samplers.initial_noise(keys, self.latent_shape(height, width))
        if cond is None:
            cond = self.condition(params, fields, drop, frozen)
        if null is None and sampling.guidance != 1.0:
            null = self.away(params, frozen, fields, drop)
        tiling = sampling.tiling(self, height, width)
        denoise = self.guided(params, frozen, cond, null, sampling, tiling)
        if sampling.clip:
            denoise = guidance.clip_x0(denoise, sampling.clip)
        if mask is not None:
            denoise = editing.keep(denoise, init, mask)
        grid = sampling.grid(self.process)
        x = grid.pure(noise) if init is None else grid.noised(init, noise)
        method = sampling.method(self.process)
        return samplers.solve(method, denoise, x, keys=keys, trace=trace, seen=seen)

    def away(self, params, frozen, fields, drop) -> Cond:
        """What guidance leads away from: the null condition, or the same for a weaker denoiser."""
        if "guide" in frozen:
            return self.condition(frozen["guide"], fields, drop, frozen)
        return self.condition(params, fields, jnp.ones_like(drop), frozen)

    def guided(
        self, params, frozen, cond: Cond, null: Cond | None, sampling, tiling=None, scale=None
    ):
        """(x [b, ...], t [b]) -> x_0 under `cond`, with the guidance that `sampling` asks for.

        It leads away from the same network under `null`; or, where frozen["guide"] holds the
        parameters of a weaker one, from that one, whose condition `null` is then (autoguidance).
        Of one network, both sides have the control of `cond`, as it was trained: a null condition
        has none.
        scale: [b], each row's own in the place of that of `sampling`.
        """
        predict = functools.partial(self.predict_x0, tiling=tiling)
        strong = functools.partial(predict, params)
        plain = functools.partial(strong, cond=cond)
        if scale is None and sampling.guidance == 1.0:
            return plain
        if "guide" in frozen:
            weaker = functools.partial(predict, frozen["guide"], cond=null)
            make = functools.partial(guidance.autoguide, plain, weaker)
        else:
            null = null._replace(control=cond.control, control_scale=cond.control_scale)
            make = functools.partial(guidance.guide, strong, cond, null)
        share, interval = self.process.noise_share, sampling.interval
        combine = functools.partial(sampling.combine, scale=scale)
        return guidance.within(make, plain, combine, share, interval)

    def render(self, frozen, z, sampling: Sampling):
        """The images of scaled latents, [b, h, w, 3], not clipped; large ones tile by tile."""
        height, width = (side * self.codec.f for side in z.shape[1:3])
        tiling = sampling.tiling(self, height, width)
        decode = functools.partial(self.decode, frozen)
        return tiling.apply(decode, z, self.codec.f) if tiling else decode(z)

    def condition(self, params, fields, drop, frozen=None) -> Cond:
        """drop: [b] bool, True for the null condition."""
        variables = {"params": params, **_collection(frozen)}
        fields = self.tell(len(drop)) | (fields or {})
        return self.denoiser.apply(variables, fields, drop, method="condition")

    def predict(self, params, x_t, t, cond: Cond):
        """The raw network output at timesteps t [b]; [b, h, w, c]."""
        return self.denoiser.apply({"params": params}, x_t, t, cond, method="denoise")

    def predict_x0(self, params, x_t, t, cond: Cond, tiling=None):
        """The x_0 that the network's output implies, [b, h, w, c]; by tiles where there are any."""

        def predict(parts):
            own = cond._replace(concat=parts["concat"], control=parts["control"])
            return self.process.to_x0(self.predict(params, parts["x"], t, own), parts["x"], t)

        whole = {"x": x_t, "concat": cond.concat, "control": cond.control}
        return tiling.apply(predict, whole) if tiling else predict(whole)


def _collection(frozen) -> dict:
    """The Linen collection of the conditioners' weights from elsewhere, where there are any."""
    own = (frozen or {}).get("conditioners")
    return {"frozen": own} if own else {}
