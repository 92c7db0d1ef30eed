"""The kind of stage that trains a denoiser of latents."""

import contextlib
import dataclasses
import itertools

import jax
import jax.numpy as jnp

from ldm_jax.base import defaults, errors, terminal, tree, upgrade, values
from ldm_jax.base import record as record_lib
from ldm_jax.data import latents as latents_lib
from ldm_jax.diffusion.loss_weights import WEIGHTS
from ldm_jax.diffusion.process import DENSITIES, PREDICTIONS, SCHEDULES, make_process
from ldm_jax.engine import hosts
from ldm_jax.models import dit, unet, uvit  # noqa: F401  (register themselves)
from ldm_jax.models.backbones import BACKBONES
from ldm_jax.models.conditioners import CONDITIONERS, label_of
from ldm_jax.models.denoiser import Denoiser
from ldm_jax.nn import variables
from ldm_jax.runs import adapters, codecs, conditions, data, keys, kinds, opened, teachers
from ldm_jax.runs import frozen as frozen_lib
from ldm_jax.stages import adapt, diffuse, distil, kept, scaling, thumbnails
from ldm_jax.stages.sampling import Sampling
from ldm_jax.weights import readers

MOST_NOISE = 0.2  # mean share of the posterior's noise that goes unmentioned
IMAGE_CHANNELS = 3
DEAD = 0.9  # share at which a channel counts as dead


class DiffuseKind(kinds.Kind):
    """Noise to latents; `config.model` is a registered backbone."""

    title = "a second stage"
    records = ("latents.json",)
    player = "denoiser"
    keys = defaults.SecondStage
    draws = True

    def defaults(self):
        return defaults.ldm()

    def declared(self, config):
        found = {
            "model": keys.of_network(BACKBONES.get(config.model.name)),
            "process": SCHEDULES.declared() | DENSITIES.declared(),
            "sample": values.declared(Sampling),
            "loss": WEIGHTS.declared(),
            "distil": distil.METHODS.declared(),
            "adapt": adapt.ADAPTERS.declared(),
        }
        for group in ("process", "loss", "distil", "adapt"):  # beside keys that are always there
            found[group] |= values.declared(values.declared(self.keys)[group])
        for label, own in config.conditioners.items():
            found[f"conditioners.{label}"] = conditions.declared(own.name)
        return found

    def names(self, config):
        found = {"model.name": BACKBONES, "process.schedule": SCHEDULES}
        found |= {"process.density": DENSITIES, "process.prediction": PREDICTIONS}
        found |= {"loss.weight": WEIGHTS, "loss.distance": diffuse.DISTANCES}
        found |= {"distil.method": distil.METHODS} if config.distil.method else {}
        found |= {"adapt.name": adapt.ADAPTERS} if config.adapt.name else {}
        return found | {f"conditioners.{label}.name": CONDITIONERS for label in config.conditioners}

    def check(self, config, source, codec=None):
        codecs.check_trained(config.first_stage)
        model = self.model(config, codec)
        with errors.of("config.model"):
            model.denoiser.backbone.check()
        with errors.of("config.loss"):
            model.check()
        for label, conditioner in self.conditioners(config).items():
            with errors.of(f"config.conditioners.{label}"):
                conditioner.check()
                conditioner.check_factor(model.codec.f)
                _check_width(conditioner, model.denoiser.backbone, config.model.name)
        conditions.check_controls(config)
        if codecs.is_identity(config.first_stage) and model.codec.channels != IMAGE_CHANNELS:
            raise errors.UsageError(
                f"config.first_stage={config.first_stage}: images have {IMAGE_CHANNELS} channels; "
                "give 'identity' or the run of a first stage."
            )
        if config.distil.method:
            teachers.check(config, model)
        adapters.check(config, model)
        _check_latents(config.latents, model.codec.channels)
        with errors.of("config.sample"):
            conditions.check_guidance(config, config.sample.guidance)
            model.sampling.method(model.process)
            model.sampling.check_tile(model.divisor)
        classes = conditions.classes(config)
        if 0 < classes < len(source.classes or ()):
            raise errors.UsageError(
                f"config.conditioners.{label_of(config.conditioners, 'class')}.num_classes="
                f"{classes}, but the data has {len(source.classes)} classes: take other data, or a "
                "model of so many."
            )
        conditions.make(config, source, codec=codec)

    def divisor(self, config, codec=None):
        model = self.model(config, codec)
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
                backbone=BACKBONES.make(name, out_channels=codec.channels, **kwargs, **how),
                conditioners=tuple(self.conditioners(config).values()),
            ),
            process=make_process(**config.process),
            codec=codec,
            size=config.data.size,
            loss=_loss(**config.loss),
            sampling=Sampling(**config.sample),
            total=config.steps.total,
        )

    def stage(self, config, frozen, codec=None):
        model = self.model(config, codec)
        distilled = config.distil.method and teachers.distilled(config, model)
        return adapters.stage(config, (distilled or adapters.keeping(config, model)).stage(frozen))

    def frozen(self, config, codec=None) -> tuple[frozen_lib.Frozen, ...]:
        """The first stage beneath it, conditioners' weights from elsewhere, the weights that it
        adapts, a student's teacher."""
        model = self.model(config, codec)
        others = *adapters.frozen(config, model.codec), *teachers.frozen(config, model)
        return *self._beneath(config, codec), *others

    def _beneath(self, config, codec=None) -> tuple[frozen_lib.Frozen, ...]:
        """What drawing needs beside the denoiser."""
        model, name = self.model(config, codec), config.first_stage
        key = lambda: jax.random.key(0)

        def read_first_stage():
            params, step = codecs.read_params(name)
            return params, {"first_stage": name, "step": step}

        def first_stage_shapes():
            if not model.codec.model:
                return {}
            image = jnp.zeros((1, model.size, model.size, 3))
            init = lambda: variables.initial(model.codec.model, key(), image)
            return jax.eval_shape(init)["params"]

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
            digest=lambda weights: tree.digest(upgrade.numbered(weights, config.conditioners)),
        )
        return first_stage, conditioners

    def frozen_shapes(self, config, codec=None):
        channels = self.model(config, codec).codec.channels
        shape = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)
        scale = {"scale": shape(())}
        if _by_channel(config):
            scale = dict.fromkeys(("scale", "shift"), shape((channels,)))
        if thumbnails.weighty(config.loss.terms):
            scale["thumbnail"] = shape((channels, thumbnails.CHANNELS))
        return frozen_lib.shapes(self.frozen(config, codec)) | scale

    def begin(self, config, source, record, cache=None):
        networks, began = self.frozen(config), record.frozen
        weights, origin = frozen_lib.read(networks, began, record.shown)
        if cache:
            cache.check_weights(config.first_stage, origin["digest"])

        def measured() -> dict:
            own = config, source, weights["first_stage"], cache
            if not (latents := record.latents):
                latents = self._statistics(*own, origin)
                _warn_of_noise(latents.get("noise", ()), config.first_stage)
            if thumbnails.weighty(config.loss.terms) and "thumbnail" not in latents:
                latents = latents | {"thumbnail": self._thumbnail(*own, latents)}
            if latents != record.latents:
                latents = latents | {"origin": origin}
                record.write(latents=latents)
            return latents

        latents = hosts.on_first(measured, seconds=3600)
        return self.stage(config, weights | scaling.arrays(latents))

    def beneath(self, config, record) -> dict:
        """The frozen weights that drawing needs beside the denoiser, of a run that was trained."""
        if not record.latents:
            raise errors.UsageError(f"{record.shown} was never trained: it holds no latents.json.")
        weights, _ = frozen_lib.read(self._beneath(config), record.frozen, record.shown)
        return weights | scaling.arrays(record.latents)

    def evaluated(self, config, record):
        beneath, model = self.beneath(config, record), self.model(config)
        base, _ = frozen_lib.read(adapters.frozen(config), record.frozen, record.shown)
        return adapters.stage(config, model.stage(beneath | base))

    def judged(self, config, record):
        beneath, model = self.beneath(config, record), self.model(config)
        others = *adapters.frozen(config), *teachers.frozen(config, model)
        weights, _ = frozen_lib.read(others, record.frozen, record.shown)
        return self.stage(config, beneath | weights)

    def _statistics(self, config, source, params, cache, origin) -> dict:
        """Scale and moments of the latents: inherited, given, or measured on some batches."""
        if theirs := _shared(config, origin["digest"]):
            return theirs
        if config.init_from:
            inherited = record_lib.Record(config.init_from).latents
            if inherited.pop("origin", {}).get("digest") == origin["digest"]:
                if ("shift" in inherited) != _by_channel(config):
                    raise errors.UsageError(
                        f"config.init_from={config.init_from} was trained on latents with "
                        f"{'a' if 'shift' in inherited else 'no'} scale of every channel: set "
                        f"config.latents.per_channel={'shift' in inherited}, without mean and std."
                    )
                return inherited
        if given := _given(config.latents):
            return given
        with self._some(config, source, cache) as batches:
            key, each = jax.random.key(config.seed), config.latents.per_channel
            return scaling.measure(self.codec(config), params, batches, key, each)

    def _thumbnail(self, config, source, params, cache, latents) -> list:
        with self._some(config, source, cache) as batches:
            given = scaling.arrays(latents), jax.random.key(config.seed)
            return thumbnails.measure(self.codec(config), params, batches, *given)

    @contextlib.contextmanager
    def _some(self, config, source, cache):
        """The batches that latents are measured on."""
        # One host reads whole batches, so that the scale is the same on any number of hosts.
        found = data.make(config, source, ("image",), dict(host=0, hosts=1), cache).train(0)
        with found as batches:
            yield itertools.islice(batches, config.latents.batches)

    def batch(self, config, cached=False, codec=None):
        model, b, size = self.model(config, codec), config.batch_size, config.data.size
        image, fields = jax.ShapeDtypeStruct((b, size, size, 3), jnp.float32), self.fields(model, b)
        if config.adapt.keep:
            fields[kept.FIELD] = jax.ShapeDtypeStruct((b,), jnp.int32)
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

    def drawing(self, config, codec=None):
        model = self.model(config, codec)
        how = dict(sampling=model.sampling, height=model.size, width=model.size)
        whole = adapters.whole(config)

        def draw(params, frozen, batch, keys):
            fields = {name: batch[name] for name in model.fields}
            own = whole(params, frozen)[self.player]
            z = model.sample(own, frozen, keys, fields, **how)
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
        cache = latents_lib.Cache(path)
        cache.check(latents_lib.about(data.training(config, source), how))
        return cache

    def converted(self, record, config, source):
        _, origin = frozen_lib.read(self.frozen(config), {}, record.shown)
        if not isinstance(source.first_stage, str):  # inside, wherever the run will be
            origin["first_stage"] = record.inside(config.first_stage)
        record.write(latents=_given(config.latents) | {"origin": origin})

    def forward(self, config):
        model, b, size = self.model(config), config.batch_size, config.data.size
        x = jax.ShapeDtypeStruct((b, *model.latent_shape(size, size)), jnp.float32)
        fields = jax.eval_shape(lambda: model.example(b, size, size) | model.tell(b))
        variables = jax.eval_shape(lambda: model.initial(jax.random.key(0)))
        return model.denoiser.apply, (variables, x, jax.ShapeDtypeStruct((b,), jnp.int32), fields)

    def open(self, record, config, ema=True, mesh=None, weaker=None, decoder=None, adapters=None):
        return opened.SecondStage(record, config, ema, mesh, weaker, decoder, adapters)

    def export(self, record, config, folder, ema=True):
        from ldm_jax.weights import to_diffusers

        if config.adapt.name:
            return adapters.export(record, config, folder, ema)
        params, _ = adapters.weights(record, config, ema)
        codec, first = self.codec(config), None
        if codec.model:
            # Another first stage than the one it was trained on is refused here.
            frozen_lib.read(self._beneath(config)[:1], record.frozen, record.shown)
            network, beneath, _ = codecs.single(config.first_stage)
            first = network, {"model": beneath}
        whole = config.to_dict() | {"f": codec.f}
        return to_diffusers.write_second_stage(folder, whole, params, first, record.latents)


kinds.KINDS.register("diffuse")(DiffuseKind())


def _shared(config, digest: str) -> dict:
    """How a student's teacher or an adapter's base scales its latents; {} without either.

    digest: of this run's first stage, which has to be theirs.
    """
    runs = {"distil.teacher": config.distil.teacher, "adapt.base": config.adapt.base}
    for key, path in runs.items():
        if not path:
            continue
        theirs = dict(record_lib.Record(path).latents)
        if theirs.pop("origin", {}).get("digest") != digest:
            raise errors.UsageError(
                f"config.{key}={path} was trained on another first stage than "
                f"config.first_stage={config.first_stage}: both need the same."
            )
        return theirs
    return {}


def _by_channel(config) -> bool:
    """Whether every channel of the latents has its own scale, and a shift."""
    return bool(config.latents.per_channel or config.latents.std)


def _given(latents) -> dict:
    """What latents.json says of a scale that the config gives; {} where it is to be measured."""
    if latents.std:
        return scaling.of_moments(latents.mean, latents.std)
    return {"scale": latents.scale} if latents.scale else {}


def _check_width(conditioner, backbone, name: str):
    """Raises UsageError for what the backbone `name` cannot add to its timestep."""
    if "guidance" in conditioner.told and conditioner.width != backbone.time_width:
        raise errors.UsageError(
            f"width={conditioner.width} must be {backbone.time_width}, that of the timestep's "
            f"sinusoids of {name!r}."
        )
    key, wanted = conditioner.vector_key, backbone.vector_width
    width = getattr(conditioner, key) if key else 0
    if width and not wanted:
        raise errors.UsageError(f"{key}={width}: {name!r} takes no vector beside its timestep.")
    if width and width != wanted:
        raise errors.UsageError(
            f"{key}={width} must be {wanted}, that of the timestep's embedding in config.model."
        )
    key, wanted = conditioner.control_key, backbone.control_width
    if key and not wanted:
        raise errors.UsageError(f"{name!r} takes no control: only a UNet has a copy that follows.")
    if key and getattr(conditioner, key) != wanted:
        raise errors.UsageError(
            f"{key}={getattr(conditioner, key)} must be {wanted}, that of config.model."
        )


def _loss(**keys):
    known = {field.name for field in dataclasses.fields(diffuse.Loss)}
    options = {key: keys.pop(key) for key in keys.keys() - known}
    return diffuse.Loss(**keys, options=options)


def _check_latents(latents, channels):
    given = {name: tuple(latents[name]) for name in ("mean", "std")}
    ways = {"scale": latents.scale, "per_channel": latents.per_channel, "std": given["std"]}
    chosen = [f"config.latents.{name}={value}" for name, value in ways.items() if value]
    if len(chosen) > 1:
        raise errors.UsageError(f"{' and '.join(chosen)}: give one of them.")
    for name, numbers in given.items():
        if len(numbers) != (channels if any(given.values()) else 0):
            raise errors.UsageError(
                f"config.latents.{name}={numbers}: needs a number for each of the {channels} "
                "channels, in mean and in std."
            )


def _warn_of_noise(shares, first_stage):
    """A line where much of what the denoiser is to learn is noise that no picture shows."""
    if shares and (mean := sum(shares) / len(shares)) > MOST_NOISE:
        dead = sum(share > DEAD for share in shares)
        terminal.warn(
            f"warning: {mean:.0%} of the variance of config.first_stage={first_stage}'s latents is "
            f"the posterior's noise, and {dead} of {len(shares)} channels are dead: train it with "
            "a smaller config.loss.kl_weight."
        )
