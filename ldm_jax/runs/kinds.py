"""The kinds of training stages: everything that differs between them, asked in one place.

`kinds.of(config)` is the only reader of `config.stage`. A kind is a value without state, registered
by that name; whoever works with runs asks it instead of branching. A new kind of stage is one file
that registers a `Kind`.
"""

import abc

import jax
from ml_collections import ConfigDict

from ldm_jax.base import defaults, errors, registry, values
from ldm_jax.engine import step as step_lib
from ldm_jax.runs import frozen as frozen_lib
from ldm_jax.stages import api

KINDS = registry.Registry("stage")


def of(config: ConfigDict) -> "Kind":
    """The kind of stage that a config trains."""
    values.check("config.stage", stage := config.get("stage"), values.Text())
    with errors.of("config.stage"):
        return KINDS.get(stage)


def programs(config: ConfigDict, stage: api.Stage, mesh) -> step_lib.Programs:
    """The programs by which a config trains its stage on the devices of a mesh.

    A player without an optimizer in the config, one that helps another, has that of the run's own.
    """
    settings = config.optim.to_dict()
    own = settings[of(config).player]
    return step_lib.programs(
        stage,
        {player.name: settings.get(player.name, own) for player in stage.players},
        mesh=mesh,
        total=config.steps.total,
        accumulate=config.accumulate,
        ema_warmup=not config.init_from,
        offload=config.offload,
    )


class Kind(abc.ABC):
    """One kind of stage.

    Attributes:
      title: what a run of this kind is called in a sentence.
      player: the player whose weights stand for the run: what is exported, sampled, evaluated.
      keys: the keys of such a config with their types and defaults, see base/defaults.py.
      draws: whether its runs draw images from noise.
      prefix: what the names of distances between the data and its images begin with.
      records: the files, beside config.json, that a run has from its first step on.
      judged_on: "training" or "held_out": the records that those distances are measured on.
    """

    title: str
    player: str
    keys: type[values.Group] = defaults.Common
    draws: bool = False
    prefix: str = ""
    judged_on: str = "training"
    records: tuple[str, ...] = ()

    def declared(self, config) -> dict[str, dict]:
        """{group: {key: type}} of what the config names, beside `keys`; see runs/keys.py."""
        return {}

    def names(self, config) -> dict[str, registry.Registry]:
        """{"group.key": registry} of the keys that name something, beside those of every kind."""
        return {}

    @abc.abstractmethod
    def check(self, config, source):
        """Raises UsageError for what is wrong with the keys of this kind; touches no device."""

    @abc.abstractmethod
    def divisor(self, config) -> tuple[int, str]:
        """What the sides of an image must divide by, and what that number is, in words."""

    @abc.abstractmethod
    def stage(self, config, frozen: dict) -> api.Stage:
        """Players and losses; frozen: see `frozen_shapes`, as arrays or as shapes."""

    def frozen(self, config) -> tuple[frozen_lib.Frozen, ...]:
        """The networks that the stage uses and never trains."""
        return ()

    def frozen_shapes(self, config) -> dict:
        """The frozen weights of the stage, without memory: nothing is read."""
        return frozen_lib.shapes(self.frozen(config))

    @abc.abstractmethod
    def begin(self, config, source, record, cache=None) -> api.Stage:
        """The stage with its frozen weights, for a run in training.

        Their digests are recorded by the run that begins, and compared by one that goes on. cache:
        of `open_cache`.
        """

    @abc.abstractmethod
    def evaluated(self, config, record) -> api.Stage:
        """The stage with its frozen weights, of a run that was trained."""

    def judged(self, config, record) -> api.Stage:
        """As `evaluated`, with all that the stage's own measures need."""
        return self.evaluated(config, record)

    @abc.abstractmethod
    def batch(self, config, cached: bool = False) -> dict:
        """Shapes of a training batch; `cached`: of a latent cache, where the kind knows any."""

    @abc.abstractmethod
    def codec(self, config):
        """The stages.codec.Codec that takes images to latents and back."""

    @abc.abstractmethod
    def drawing(self, config):
        """((params, frozen, batch, keys) -> images of the batch, the fields that it reads).

        Reconstructions or samples: what distances to the data are measured of.
        """

    @abc.abstractmethod
    def open(self, record, config, ema=True, mesh=None, weaker=None, decoder=None):
        """The trained run as a Python object."""

    @abc.abstractmethod
    def export(self, record, config, folder, ema=True) -> str:
        """Writes the run as a folder of diffusers; returns the class that loads it."""

    @abc.abstractmethod
    def defaults(self) -> ConfigDict:
        """Every key of such a config; see base/defaults.py."""

    def converted(self, record, config, source):
        """Writes what a run converted from a foreign checkpoint says beside its weights.

        source: a weights.foreign.Foreign.
        """
        return

    def forward(self, config):
        """(function, shapes of its arguments): a forward pass, whose work a training step does
        three times; None where players share their passes."""
        return None

    def rival(self, config):
        """(name, images [n, h, w, 3] -> a value with `reconstruct`): what a run should beat by far;
        None where there is no such thing."""
        return None

    def shapes(self, config) -> dict:
        """{player: its parameters without memory}, of every player that it could have."""
        players = self.stage(config, self.frozen_shapes(config)).players
        key = jax.eval_shape(lambda: jax.random.key(0))
        return {player.name: jax.eval_shape(player.init, key) for player in players}

    def conditioners(self, config) -> dict:
        """{label: conditioner}."""
        return {}

    def open_cache(self, config, source):
        """The latent cache to train from in the place of images; None: images."""
        return None


def expect(config, wanted: str, flag: str):
    """Raises UsageError unless a run is of the kind `wanted`. flag: what the user called it."""
    other = KINDS.get(wanted)
    if (own := of(config)) is not other:
        raise errors.UsageError(f"{flag} is {own.title}: give the run of {other.title}.")
