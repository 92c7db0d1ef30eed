"""The kind of stage that trains a denoiser of latents, and such a run, opened."""

import dataclasses
import functools
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.base import defaults, errors, raster, shard, tree, upgrade
from ldm_jax.base import record as record_lib
from ldm_jax.data import latents as latents_lib
from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.process import make_process
from ldm_jax.engine import checkpoint, hosts
from ldm_jax.models import unet  # noqa: F401  (registers itself)
from ldm_jax.models.backbones import BACKBONES
from ldm_jax.models.conditioners import Cond, label_of
from ldm_jax.models.denoiser import Denoiser
from ldm_jax.runs import codecs, conditions, data, kinds
from ldm_jax.runs import frozen as frozen_lib
from ldm_jax.runs.first_stage import check_divides
from ldm_jax.stages import diffuse
from ldm_jax.stages.sampling import Sampling
from ldm_jax.weights import readers

READY = ("tokens", "vector", "concat", "mask")  # parts of a Cond that a caller may give as they are


class DiffuseKind(kinds.Kind):
    """Noise to latents; `config.model` is a registered backbone."""

    title = "a second stage"
    player = "denoiser"
    draws = True

    def defaults(self):
        return defaults.ldm()

    def check(self, config, source):
        codecs.check_trained(config.first_stage)
        model = self.model(config)
        model.denoiser.backbone.check()
        model.sampling.method(model.process)
        classes = conditions.classes(config)
        if 0 < classes < len(source.classes or ()):
            raise errors.UsageError(
                f"config.conditioners.{label_of(config.conditioners, 'class')}.num_classes="
                f"{classes}, but the data has {len(source.classes)} classes: take other data, or a "
                "model of so many."
            )
        conditions.make(config, source)

    def divisor(self, config):
        model = self.model(config)
        f, levels = model.codec.f, model.denoiser.backbone.divisor
        return f * levels, f"f={f} times {levels} (what {config.model.name} divides by)"

    def conditioners(self, config):
        return conditions.make_conditioners(config)

    def codec(self, config):
        return codecs.open_codec(config.first_stage)

    def model(self, config, codec=None) -> diffuse.Diffuse:
        """codec: in the place of the first stage that the config names, which may be untrained."""
        codec, kwargs = codec or self.codec(config), dict(config.model)
        name = kwargs.pop("name")
        how = dict(dtype=jnp.dtype(config.dtype), name=name)
        return diffuse.Diffuse(
            denoiser=Denoiser(
                backbone=BACKBONES.get(name)(out_channels=codec.channels, **kwargs, **how),
                conditioners=tuple(self.conditioners(config).values()),
            ),
            process=make_process(**config.process),
            codec=codec,
            size=config.data.size,
            loss=diffuse.Loss(**config.loss),
            sampling=Sampling(**config.sample),
        )

    def stage(self, config, frozen, codec=None):
        return self.model(config, codec).stage(frozen)

    def frozen(self, config, codec=None) -> tuple[frozen_lib.Frozen, ...]:
        """The first stage beneath it, and conditioners' weights from elsewhere."""
        model, name = self.model(config, codec), config.first_stage
        key = lambda: jax.random.key(0)

        def read_first_stage():
            params, step = codecs.read_params(name)
            return params, {"first_stage": name, "step": step}

        def first_stage_shapes():
            if not model.codec.model:
                return {}
            image = jnp.zeros((1, model.size, model.size, 3))
            return jax.eval_shape(lambda: model.codec.model.init(key(), image)["params"])

        first_stage = frozen_lib.Frozen(
            name="first_stage",
            key="digest",
            given=f"config.first_stage={name}",
            read=read_first_stage,
            shapes=first_stage_shapes,
        )
        own = jax.eval_shape(lambda: model.initial(key())).get("frozen")
        if not own:
            return (first_stage,)
        conditioners = frozen_lib.Frozen(
            name="conditioners",
            key="conditioners",
            given="The files of weights that config.conditioners names",
            read=lambda: (readers.read_conditioners(model.denoiser), {}),
            shapes=lambda: own,
            digest=lambda weights: tree.digest(numbered(config, weights)),
        )
        return first_stage, conditioners

    def frozen_shapes(self, config, codec=None):
        scale = {"scale": jax.ShapeDtypeStruct((), jnp.float32)}
        return frozen_lib.shapes(self.frozen(config, codec)) | scale

    def begin(self, config, source, record, cache=None):
        networks, began = self.frozen(config), record.frozen
        weights, origin = frozen_lib.read(networks, began, record.shown)
        if cache:
            cache.check_weights(config.first_stage, origin["digest"])

        def measured() -> dict:
            if not (latents := record.latents):
                statistics = self._statistics(config, source, weights["first_stage"], origin, cache)
                latents = statistics | {"origin": origin}
                record.write(latents=latents)
            return latents

        scale = hosts.on_first(measured, seconds=3600)["scale"]
        return self.stage(config, weights | {"scale": jnp.float32(scale)})

    def evaluated(self, config, record):
        if not record.latents:
            raise errors.UsageError(f"{record.shown} was never trained: it holds no latents.json.")
        weights, _ = frozen_lib.read(self.frozen(config), record.frozen, record.shown)
        return self.stage(config, weights | {"scale": np.float32(record.latents["scale"])})

    def _statistics(self, config, source, params, origin, cache) -> dict:
        """Scale and moments of the latents: inherited, given, or measured on some batches."""
        if config.init_from:
            inherited = record_lib.Record(config.init_from).latents
            if inherited.pop("origin", {}).get("digest") == origin["digest"]:
                return inherited
        if config.latents.scale:
            return {"scale": config.latents.scale}
        # One host reads whole batches, so that the scale is the same on any number of hosts.
        found = data.make(config, source, ("image",), dict(host=0, hosts=1), cache).train(0)
        with found as batches:
            some = itertools.islice(batches, config.latents.batches)
            key = jax.random.key(config.seed)
            return diffuse.latent_statistics(self.codec(config), params, some, key)

    def batch(self, config, cached=False, codec=None):
        model, b, size = self.model(config, codec), config.batch_size, config.data.size
        image, fields = jax.ShapeDtypeStruct((b, size, size, 3), jnp.float32), self.fields(model, b)
        if not cached:
            return {"image": image} | fields
        params = self.frozen_shapes(config, codec)["first_stage"]
        return {"moments": jax.eval_shape(model.codec.moments, params, image)} | fields

    def fields(self, model, b: int) -> dict:
        """Shapes of what conditioners read of b records; images in the place of their latents."""
        fields = dict(jax.eval_shape(lambda: model.example(b, model.size, model.size)))
        for field, image in model.denoiser.latent_of.items():
            del fields[field]
            fields[image] = jax.ShapeDtypeStruct((b, model.size, model.size, 3), jnp.float32)
        return fields

    def drawing(self, config):
        model = self.model(config)
        how = dict(sampling=model.sampling, height=model.size, width=model.size)

        def draw(params, frozen, batch, keys):
            fields = {name: batch[name] for name in model.fields}
            z = model.sample(params[self.player], frozen, keys, fields, **how)
            return model.render(frozen, z, model.sampling)

        return draw, model.fields

    def open_cache(self, config, source):
        if not (path := config.latents.cache):
            return None
        if codecs.is_identity(config.first_stage):
            raise errors.UsageError(
                f"config.latents.cache={path}: config.first_stage={config.first_stage} has no "
                "latents to keep; leave the cache empty."
            )
        how = config.data
        latents_lib.variants(how.size, how.crop, how.flip, how.interpolation)
        cache = latents_lib.open_cache(path)
        cache.check(latents_lib.about(data.training(config, source), how))
        return cache

    def converted(self, record, config, source):
        _, origin = frozen_lib.read(self.frozen(config), {}, record.shown)
        if not isinstance(source.first_stage, str):  # inside, wherever the run will be
            origin["first_stage"] = record.inside(config.first_stage)
        record.write(latents={"scale": source.scale, "origin": origin})

    def forward(self, config):
        model, b, size = self.model(config), config.batch_size, config.data.size
        x = jax.ShapeDtypeStruct((b, *model.latent_shape(size, size)), jnp.float32)
        fields = jax.eval_shape(lambda: model.example(b, size, size))
        variables = jax.eval_shape(lambda: model.initial(jax.random.key(0)))
        return model.denoiser.apply, (variables, x, jax.ShapeDtypeStruct((b,), jnp.int32), fields)

    def open(self, record, config, ema=True, mesh=None, weaker=None):
        return SecondStage(record, config, ema, mesh, weaker)

    def export(self, record, config, folder, ema=True):
        from ldm_jax.weights import to_diffusers

        params = checkpoint.read_params(record.path, (self.player,), ema=ema)[0][self.player]
        codec, first = self.codec(config), None
        if codec.model:
            beneath, _ = codecs.read_params(config.first_stage)
            first = dict(record_lib.Record(config.first_stage).config.model), {"model": beneath}
        whole = config.to_dict() | {"f": codec.f}
        return to_diffusers.write_second_stage(
            folder, whole, params, first, record.latents["scale"]
        )


kinds.KINDS.register("diffuse")(DiffuseKind())


def numbered(config, params):
    """Conditioners' parameters under the names of version 0.1, for digests.

    What runs and jobs recorded then still holds.
    """
    names = upgrade.parameter_names(config.conditioners)
    return upgrade.renamed(params, {new: old for old, new in names.items()})


class SecondStage:
    """A trained denoiser with its first stage."""

    def __init__(self, record, config, ema=True, mesh=None, weaker=None):
        self.path, self.config = record.path, config
        kind = kinds.of(config)
        self.model = kind.model(config)
        frozen = dict(kind.evaluated(config, record).frozen)
        params, self.step = checkpoint.read_params(record.path, ("denoiser",), ema=ema)
        self.digest = tree.digest((numbered(config, params), frozen["first_stage"]))
        self.guide_digest = None
        if weaker:
            guide = read_guide(weaker, params["denoiser"], ema)
            self.guide_digest = tree.digest(numbered(config, guide))
            frozen["guide"] = guide
        self._mesh = mesh
        self._params = shard.place(params["denoiser"], mesh)
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

    def denoise(self, z_t, t, cond: dict | None = None):
        """The raw network output at integer timesteps t [n]; z_t: [n, h/f, w/f, c].

        cond: the conditioners' fields, or ready `tokens`, `vector`, `concat`; None is the null.
        """
        z_t = jnp.asarray(z_t, jnp.float32)
        size = tuple(side * self.model.codec.f for side in z_t.shape[1:3])
        return self._predict(self._params, z_t, jnp.asarray(t), self._cond(cond, len(z_t), size))

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
        sampling.grid(self.model.process)
        size = size or (self.config.data.size,) * 2
        cond = dict(cond or {})
        null = {k.removeprefix("null_"): cond.pop(k) for k in list(cond) if k.startswith("null_")}
        if sampling.guidance == 1.0:
            null = None
        elif "guide" not in self._frozen or null:
            null = self._cond(null, n, size)
        else:
            null = self._cond(cond, n, size, self._frozen["guide"])
        program = self._sampler(sampling, *size, output)
        arrays = {k: jnp.asarray(v) for k, v in given.items() if v is not None}
        keys = samplers.image_keys(seed, jnp.asarray(indices))
        inputs = self._rows((keys, self._cond(cond, n, size), null, arrays))
        return program(self._params, self._frozen, *inputs)

    def _compile(self, sampling, height, width, output):
        """One program for the whole of sampling: denoising, guidance, decoding, to `output`."""
        how = dict(sampling=sampling, height=height, width=width, trace=output == "path")

        def draw(params, frozen, keys, cond, null, arrays):
            z = self.model.sample(params, frozen, keys, cond=cond, null=null, **arrays, **how)
            if output == "path":
                return z[1]
            if output == "latents":
                return z
            images = self.model.render(frozen, z, sampling)
            return raster.to_uint8(images) if output == "pixels" else jnp.clip(images, -1, 1)

        return jax.jit(draw)

    def _cond(self, cond: dict | None, n: int, size, params=None) -> Cond:
        """From fields or ready arrays; the null condition where nothing is given."""
        params = self._params if params is None else params
        known = self.model.fields
        if cond and not set(cond) <= set(known) and set(cond) <= set(READY):
            return Cond(**{k: jnp.asarray(v) for k, v in cond.items()})
        if unknown := sorted(set(cond or {}) - set(known)):
            raise errors.UsageError(
                f"cond has no field {unknown[0]!r}{errors.nearest(unknown[0], known)}; this run is "
                f"conditioned on {', '.join(known) or 'nothing'}."
            )
        if not cond:
            example = self.model.example(n, *size)
            return self._condition(params, example, jnp.ones(n, bool), self._frozen)
        self._check_classes(cond.get("class"), n)
        fields = {k: jnp.asarray(v) for k, v in cond.items()}
        fields = self._encode_fields(self._frozen, fields)
        return self._condition(params, fields, jnp.zeros(n, bool), self._frozen)

    def _rows(self, inputs):
        """Rows over the devices of the mesh, where the run has one."""
        if self._mesh is None:
            return inputs
        return jax.device_put(inputs, shard.batch_sharding(self._mesh))

    def _check_classes(self, ids, n):
        # Under jit a label out of range does not raise: it reads some other row.
        if ids is None or isinstance(ids, jax.core.Tracer):
            return
        ids = np.asarray(ids)
        wrong = ids[(ids < 0) | (ids > self.num_classes)]  # the last is the null class
        if ids.shape != (n,) or wrong.size:
            raise errors.UsageError(
                f"cond['class'] must be {n} ids in 0..{self.num_classes - 1}; got shape {ids.shape}"
                + (f", first wrong id {wrong.flat[0]}." if wrong.size else ".")
            )


def read_guide(path, params, ema):
    """A denoiser's weights from the run in `path`, of the same shapes as `params`."""
    guide, _ = checkpoint.read_params(record_lib.Record(path).path, ("denoiser",), ema=ema)
    shapes = lambda p: {name: np.shape(leaf) for name, leaf in tree.named_leaves(p)}
    ours, theirs = shapes(params), shapes(guide["denoiser"])
    if ours != theirs:
        name = sorted(ours.items() ^ theirs.items())[0][0]
        raise errors.UsageError(
            f"{path} is not a weaker run of the same model: {name} is {theirs.get(name)} there and "
            f"{ours.get(name)} here."
        )
    return guide["denoiser"]
