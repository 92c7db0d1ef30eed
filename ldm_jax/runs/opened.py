"""A trained run as a Python object: encode, decode, denoise, sample.

    run = ldm_jax.load("runs/x")
    z = run.encode(images)
    images = run.sample(8, steps=50, guidance=2.0, cond={"class": ids})

Images are [n, h, w, 3] floats in [-1, 1]. Runs of both stages have encode and decode; a second
stage's latents are scaled (stages/scaling.py), a first stage's are not.
"""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.base import errors, platforms, raster, shard, tree, upgrade
from ldm_jax.base.record import Record
from ldm_jax.diffusion import samplers
from ldm_jax.models.conditioners import Cond
from ldm_jax.runs import adapters as adapters_lib
from ldm_jax.runs import codecs, conditions, keys, kinds
from ldm_jax.stages.sampling import Sampling

READY = ("tokens", "vector", "concat", "mask")  # parts of a Cond that a caller may give as they are


def load(path, ema: bool | float = True, mesh=None, weaker=None, decoder=None, adapters=None):
    """Opens the run in `path`: a FirstStage or a SecondStage.

    Args:
      ema: True takes the moving average of the weights, where the run keeps one, False the weights
        themselves, a number the average of that length, combined from snapshots of averages along
        power functions (engine/snapshots.py).
      mesh: puts the weights on all its devices; batches given to the run must then divide.
      weaker: a run of the same model, less trained; guidance then leads away from it instead of
        from the null condition (autoguidance, Karras et al. 2024).
      decoder: a run of a first stage that decodes the same latents, in the place of the run's own
        (config.encoder).
      adapters: {run of an adapter of this run: its weight, 1 as it was trained}; see config.adapt.
        The run of one adapter may be opened itself.
    """
    platforms.quiet_libraries()
    record = Record(path)
    config = keys.read(path)
    adapters_lib.check_drawn(path, config, ema, weaker, adapters)
    if weaker:
        conditions.check_guidance(config, config.sample.guidance, weaker)
    given = {"adapters": adapters} if adapters else {}
    return kinds.of(config).open(record, config, ema, mesh, weaker, decoder, **given)


class FirstStage:
    """A trained autoencoder.

    Attributes:
      path, config, step, digest: of the run, and of the weights that were read.
      codec: the network, a stages.codec.Codec.
    """

    def __init__(self, record, config, ema=True, mesh=None, decoder=None):
        self.path, self.config = record.path, config
        self.codec = kinds.of(config).codec(config)
        params, self.step = codecs.read_params(record.path, ema)
        if decoder:
            self.codec, params, _ = codecs.with_decoder(decoder, self.codec, params, record.shown)
        self.digest = tree.digest(params)
        self._params = shard.place(params, mesh)
        self._encode, self._decode = jax.jit(self.codec.encode), jax.jit(self.codec.decode)

    def encode(self, images, key=None):
        """[n, h, w, 3] -> [n, h/f, w/f, c]: the posterior's mode, or with a key a sample of it."""
        check_divides(images, self.codec.f)
        return self._encode(self._params, jnp.asarray(images, jnp.float32), key)

    def decode(self, z):
        """[n, h/f, w/f, c] -> [n, h, w, 3], not clipped; VQ quantises here."""
        return self._decode(self._params, jnp.asarray(z, jnp.float32))


class SecondStage:
    """A trained denoiser with its first stage.

    Attributes:
      path, config, step, digest: of the run, and of the weights that were read.
      model: a stages.diffuse.Diffuse.
      guide_digest, decoder_digest: of `weaker` and of `decoder`, where they are given.
    """

    def __init__(
        self, record, config, ema=True, mesh=None, weaker=None, decoder=None, adapters=None
    ):
        self.path, self.config = record.path, config
        kind = kinds.of(config)
        self.model = kind.model(config)
        frozen = kind.beneath(config, record)
        self.decoder_digest = None
        if decoder:
            beneath = self.model.codec, frozen["first_stage"], config.first_stage
            codec, params, self.decoder_digest = codecs.with_decoder(decoder, *beneath)
            self.model = dataclasses.replace(self.model, codec=codec)
            frozen["first_stage"] = params
        own, self.step = adapters_lib.weights(record, config, ema, adapters)
        params = {"denoiser": own}
        self.digest = tree.digest(
            (upgrade.numbered(params, config.conditioners), frozen["first_stage"])
        )
        self.guide_digest = None
        if weaker:
            guide = read_guide(weaker, own, ema)
            self.guide_digest = tree.digest(upgrade.numbered(guide, config.conditioners))
            frozen["guide"] = guide
        self._mesh = mesh
        self._params = shard.place(own, mesh)
        self._frozen = shard.place(frozen, mesh)
        self._encode, self._decode = jax.jit(self.model.encode), jax.jit(self.model.decode)
        self._predict = jax.jit(self.model.predict)
        self._condition = jax.jit(self.model.condition)
        self._encode_fields = jax.jit(self.model.encode_fields)
        self._sampler = functools.lru_cache(self._compile)

    @property
    def num_classes(self) -> int:
        """Classes of a class-conditional run, otherwise 0."""
        return conditions.classes(self.config)

    def encode(self, images, key=None):
        """[n, h, w, 3] -> scaled latents [n, h/f, w/f, c]."""
        check_divides(images, self.model.codec.f)
        return self._encode(self._frozen, jnp.asarray(images, jnp.float32), key)

    def decode(self, z):
        """Scaled latents -> [n, h, w, 3], not clipped."""
        return self._decode(self._frozen, jnp.asarray(z, jnp.float32))

    def denoise(self, z_t, t, cond: dict | None = None, guidance: float | None = None):
        """The raw network output at integer timesteps t [n]; z_t: [n, h/f, w/f, c].

        cond: the conditioners' fields, or ready `tokens`, `vector`, `concat`; None is the null one.
        guidance: what a denoiser that is told its guidance is told, by default the run's own.
        """
        z_t, how = jnp.asarray(z_t, jnp.float32), self.model.sampling
        if guidance is not None:
            if "guidance" not in self.model.denoiser.told:
                raise errors.UsageError(
                    f"guidance={guidance}: this network is told none; `sample` guides it."
                )
            how = dataclasses.replace(how, guidance=float(guidance))
        size, told = (side * self.model.codec.f for side in z_t.shape[1:3]), self.model.tell
        cond = self._cond(cond, len(z_t), tuple(size), told(len(z_t), how))
        return self._predict(self._params, z_t, jnp.asarray(t), cond)

    def sample(
        self,
        n: int,
        sampler: str = "ddim",
        steps: int = 50,
        eta: float = 0.0,
        guidance: float = 1.0,
        seed: int = 0,
        cond: dict | None = None,
        noise=None,
        latents: bool = False,
        spacing: str = "exact",
        size: tuple[int, int] | None = None,
        first: int = 0,
        init=None,
        mask=None,
        **settings,
    ):
        """Draws images first .. first + n - 1; image i depends on (seed, i) and condition i alone.

        Args:
          cond: {field: [n, ...]} or ready arrays (see `denoise`), with `null_<name>` for guidance
            where the model's own null is not wanted; None samples the null condition.
          noise: x_T, [n, h/f, w/f, c].
          latents: return scaled latents instead of images.
          size: (height, width) in pixels; the training size by default.
          init: scaled latents to begin from, [n, h/f, w/f, c], noised to `strength` of the way.
          mask: [n, h/f, w/f, 1]; where it is 0 the latents stay those of `init`.
          settings: the other fields of stages.sampling.Sampling: rescale, interval, clip, tile,
            strength, ...; those that are not given are the run's own (its `config.sample`).

        Returns:
          [n, height, width, 3], clipped to [-1, 1].
        """
        own = dataclasses.asdict(self.model.sampling) | settings
        own |= dict(sampler=sampler, steps=steps, spacing=spacing)
        how = Sampling(**own | dict(eta=float(eta), guidance=float(guidance)))
        output = "latents" if latents else "images"
        given = {"noise": noise, "init": init, "mask": mask}
        return self._draw(n, how, output, seed, cond, size, first + np.arange(n), given)

    def draw(self, n: int, how: Sampling, seed=0, cond=None, size=None, indices=None, **given):
        """As `sample`; uint8 [n, h, w, 3] on the host. indices: of the images, 0 .. n - 1 else."""
        indices = np.arange(n) if indices is None else indices
        return np.asarray(self._draw(n, how, "pixels", seed, cond, size, indices, given))

    def watch(self, seen, n: int, how: Sampling, seed=0, cond=None, size=None, **given):
        """As `draw`, by a program of its own that tells what it predicts; one at a time.

        seen: (index of a network call, x_0 [n, h/f, w/f, c] predicted in it), see samplers.solve.
        """
        self._seen = seen
        try:
            pixels = self._draw(n, how, "watched", seed, cond, size, np.arange(n), given)
            return np.asarray(pixels)
        finally:
            jax.effects_barrier()
            self._seen = None

    def trace(self, n: int, how: Sampling, seed=0, cond=None, size=None, frames: int = 8):
        """x_t and the predicted x_0 after evenly spread calls, uint8 [frames, n, h, w, 3] each."""
        path = self._draw(n, how, "path", seed, cond, size, np.arange(n), {})
        chosen = np.linspace(0, len(path["x"]) - 1, frames).round().astype(int)
        decode = lambda z: np.asarray(raster.to_uint8(self.decode(z)))
        return tuple(np.stack([decode(path[k][i]) for i in chosen]) for k in ("x", "x_0"))

    def noise(self, seed: int, indices, size: tuple[int, int]):
        """x_T that images with these indices begin with, [n, h/f, w/f, c]."""
        keys = samplers.image_keys(seed, jnp.asarray(indices))
        return samplers.initial_noise(keys, self.model.latent_shape(*size))

    def time_decode(self, n: int, how: Sampling, size: tuple[int, int]) -> float:
        """Seconds to decode n latents, the device drained; compiled and run once beforehand."""
        (z,) = self._rows((jnp.zeros((n, *self.model.latent_shape(*size))),))
        render = jax.jit(lambda frozen, z: self.model.render(frozen, z, how))
        for _ in range(2):
            begin = time.monotonic()
            jax.block_until_ready(render(self._frozen, z))
            seconds = time.monotonic() - begin
        return seconds

    @property
    def weights(self) -> dict:
        """The denoiser's, and the frozen first stage with its scale."""
        return {"params": self._params, "frozen": self._frozen}

    def _draw(self, n, sampling, output, seed, cond, size, indices, given):
        conditions.check_guidance(self.config, sampling.guidance)
        conditions.check_scale(self.config, sampling.conditioning_scale)
        sampling.grid(self.model.process)
        told, sampling = self.model.tell(n, sampling), self.model.left(sampling)
        size = size or (self.config.data.size,) * 2
        cond = dict(cond or {})
        null = {k.removeprefix("null_"): cond.pop(k) for k in list(cond) if k.startswith("null_")}
        self._check_hint(cond, n, size)
        if sampling.guidance == 1.0:
            null = None
        elif "guide" not in self._frozen or null:
            if null and conditions.HINT in cond:  # both sides of guidance follow the same
                null = {conditions.HINT: cond[conditions.HINT]} | null
            null = self._cond(null, n, size)
        else:
            null = self._cond(cond, n, size, params=self._frozen["guide"])
        program = self._sampler(sampling, *size, output)
        arrays = {k: jnp.asarray(v) for k, v in given.items() if v is not None}
        keys = samplers.image_keys(seed, jnp.asarray(indices))
        inputs = self._rows((keys, self._cond(cond, n, size, told), null, arrays))
        return program(self._params, self._frozen, *inputs)

    def _compile(self, sampling, height, width, output):
        """One program for the whole of sampling: denoising, guidance, decoding, to `output`."""
        how = dict(sampling=sampling, height=height, width=width, trace=output == "path")
        if output == "watched":
            how["seen"] = lambda index, x_0: self._seen(int(index), np.asarray(x_0))

        def draw(params, frozen, keys, cond, null, arrays):
            z = self.model.sample(params, frozen, keys, cond=cond, null=null, **arrays, **how)
            if output == "path":
                return z[1]
            if output == "latents":
                return z
            images = self.model.render(frozen, z, sampling)
            return jnp.clip(images, -1, 1) if output == "images" else raster.to_uint8(images)

        return jax.jit(draw)

    def _cond(self, cond: dict | None, n: int, size, told=None, params=None) -> Cond:
        """From fields or ready arrays; the null condition where nothing is given.

        told: {field: [n]} beside them, see Diffuse.tell.
        """
        params = self._params if params is None else params
        known, told = self.model.fields, told or {}
        if cond:
            self._check_hint(cond, n, size)
        if cond and not set(cond) <= set(known) and set(cond) <= set(READY):
            time = self._cond(None, n, size, told, params).time if told else None
            return Cond(**{k: jnp.asarray(v) for k, v in cond.items()}, time=time)
        if unknown := sorted(set(cond or {}) - set(known)):
            raise errors.UsageError(
                f"cond has no field {unknown[0]!r}{errors.nearest(unknown[0], known)}; this run is "
                f"conditioned on {', '.join(known) or 'nothing'}."
            )
        if not cond:
            fields = self.model.example(n, *size) | told
            return self._condition(params, fields, jnp.ones(n, bool), self._frozen)
        self._check_classes(cond.get("class"), n)
        fields = {k: jnp.asarray(v) for k, v in cond.items()}
        fields = self._encode_fields(self._frozen, fields) | told
        return self._condition(params, fields, jnp.zeros(n, bool), self._frozen)

    def _rows(self, inputs):
        """Rows over the devices of the mesh, where the run has one."""
        if self._mesh is None:
            return inputs
        return jax.device_put(inputs, shard.batch_sharding(self._mesh))

    def _check_hint(self, cond, n, size):
        """Raises UsageError for a hint that a control cannot follow, or for none."""
        if conditions.HINT not in self.model.fields:
            return
        wanted = self.model.example(n, *size)[conditions.HINT].shape
        if conditions.HINT not in cond:
            raise errors.UsageError(
                f"cond lacks {conditions.HINT!r}, which this run's control follows: give "
                f"{wanted}, values in [0, 1]."
            )
        hints = cond[conditions.HINT]
        if isinstance(hints, jax.core.Tracer):
            return
        if len(hints) != n:
            raise errors.UsageError(f"cond['hint'] has {len(hints)} rows for {n} pictures.")
        conditions.check_hints("cond['hint']", np.asarray(hints), wanted[1:])

    def _check_classes(self, ids, n):
        if ids is None or isinstance(ids, jax.core.Tracer):
            return
        conditions.check_classes("cond['class']", ids, self.num_classes)
        if len(ids) != n:
            raise errors.UsageError(f"cond['class'] has {len(ids)} rows for {n} pictures.")


def read_guide(path, params, ema):
    """A denoiser's weights from the run in `path`, of the same shapes as `params`."""
    kinds.expect(config := keys.read(path), "diffuse", path)
    guide, _ = adapters_lib.weights(Record(path), config, ema)
    shapes = lambda p: {name: np.shape(leaf) for name, leaf in tree.named_leaves(p)}
    ours, theirs = shapes(params), shapes(guide)
    if ours != theirs:
        name = sorted(ours.items() ^ theirs.items())[0][0]
        raise errors.UsageError(
            f"{path} is not a weaker run of the same model: {name} is {theirs.get(name)} there and "
            f"{ours.get(name)} here."
        )
    return guide


def check_divides(images, f):
    """Raises UsageError for images whose sides do not divide by f."""
    h, w = np.shape(images)[1:3]
    if h % f or w % f:
        raise errors.UsageError(
            f"Images of {h}x{w} do not divide by f={f}; crop or pad them to "
            f"{max(1, h // f) * f}x{max(1, w // f) * f}."
        )
