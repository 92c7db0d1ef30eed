"""How images are drawn, as one value: what a config's `sample` group and a job's manifest hold."""

import dataclasses
from typing import Annotated

from ldm_jax.base import errors, values
from ldm_jax.diffusion import grids, guidance, samplers
from ldm_jax.diffusion.process import Process
from ldm_jax.diffusion.tiles import Tiling

WHOLE = 2  # images up to so many times the training size are drawn in one piece by default

CHOICES = {  # field: the registry that its value names an entry of, and the fields that are options
    "sampler": (samplers.SAMPLERS, ("eta",)),
    "spacing": (grids.GRIDS, ("rho", "shift")),
    "rule": (guidance.GUIDANCES, ("rescale",)),
}
GUIDED = ("rule", "rescale", "interval")  # fields that say how guidance acts


def _field(default, help: str):
    """A field that is also a flag, whose --help says `help` (cli.Fields)."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Sampling:
    """One field is one key of `config.sample`, and a flag of every command that draws images.

    See guidance.linear for `rescale`, guidance.within for `interval`, grids for `rho` and
    `shift`.
    `clip` bounds scaled latents, as pixel models want it. strength: share of the steps that are
    taken, the last ones, where an image is the beginning.
    """

    sampler: str = _field("ddim", "Name of the sampler: ddim, ddpm, ... (docs/samplers.md).")
    steps: values.Positive = _field(50, "Number of steps of the time grid.")
    eta: values.Share = _field(0.0, "How much noise ddim adds at each step, 1 for as much as ddpm.")
    guidance: values.Amount = _field(1.0, "Scale of classifier-free guidance, 1 for none.")
    spacing: str = _field("exact", "Name of the time grid: exact, legacy, trailing, linspace, ...")
    rescale: values.Share = _field(
        0.0, "How far guided predictions are scaled back to the spread of others, 0 to 1."
    )
    interval: tuple[values.Share, ...] = _field(
        (), "Noise levels LOW,HIGH between which guidance acts."
    )
    clip: values.Amount = _field(0.0, "Largest magnitude of every predicted x_0, 0 for no limit.")
    strength: Annotated[float, values.Number(above=0, most=1)] = 1.0
    tile: values.Natural = _field(
        0, "Side of the tiles in pixels; 0 takes tiles for large images alone."
    )
    rho: values.Above0 = _field(7.0, "How the karras grid spaces its noise levels.")
    shift: values.Above0 = _field(1.0, "How far the shifted grid moves to noise; 1 not at all.")
    rule: str = _field("linear", "Name of the rule by which guidance combines two predictions.")
    conditioning_scale: values.Amount = _field(
        1.0, "How many times what a control adds counts, 0 for not at all."
    )

    def __post_init__(self):
        values.check_fields(self)
        object.__setattr__(self, "interval", tuple(self.interval))  # JSON has lists
        for field, (registry, options) in CHOICES.items():
            given = {option: getattr(self, option) for option in options}
            registry.taken(getattr(self, field), **given)
        guidance.check(self.interval)

    def over(self, given: dict) -> "Sampling":
        """These settings with those that are `given` in their place.

        An option of ours that another sampler, spacing or rule does not take has its default again:
        `Sampling(eta=1.0).over({"sampler": "heun"})` draws by heun. One that is given is refused.
        """
        settings = dataclasses.asdict(self) | given
        for field, (registry, options) in CHOICES.items():
            for option in set(options) - set(given):
                if settings[field] not in registry.takers(option):
                    settings[option] = getattr(Sampling, option)
        if settings["guidance"] == 1.0:
            for option in GUIDED:
                if given.get(option, getattr(Sampling, option)) != getattr(Sampling, option):
                    raise errors.UsageError(
                        f"{option}={values.shown(given[option])} does nothing without guidance: "
                        "give guidance another scale than 1, or leave it out."
                    )
        return Sampling(**settings)

    def grid(self, process: Process) -> grids.Grid:
        """The time grid; bad names and numbers are a UsageError."""
        grid = grids.GRIDS.call(self.spacing, process, self.steps, rho=self.rho, shift=self.shift)
        return grid.last(max(1, round(self.strength * len(grid))))

    def method(self, process: Process) -> samplers.Method:
        """What the sampler does at each network call."""
        return samplers.SAMPLERS.call(self.sampler, self.grid(process), eta=self.eta)

    def combine(self, strong, weak, scale=None):
        """The guided x_0 from two predictions of it, [b, ...]; scale: [b], of each row."""
        if scale is None:
            scale = self.guidance
        else:
            scale = scale.reshape(-1, *[1] * (strong.ndim - 1))
        return guidance.GUIDANCES.call(self.rule, strong, weak, scale, rescale=self.rescale)

    def check_tile(self, divisor: int):
        """Raises UsageError for tiles that do not divide as images have to."""
        if self.tile % divisor:
            nearest = max(1, round(self.tile / divisor)) * divisor
            raise errors.UsageError(
                f"tile={self.tile} must divide by {divisor}, as images do; nearest: {nearest}."
            )

    def tiling(self, model, height: int, width: int) -> Tiling | None:
        """Tiles of the latents for images of this size; None draws them whole.

        model: a stages.diffuse.Diffuse. A quarter of a tile overlaps the next.

        Raises:
          UsageError: tiles that do not divide as images have to, or a backbone of one size with
            other tiles, or with smaller pictures.
        """
        self.check_tile(model.divisor)
        tile = self.tile or WHOLE * model.size
        if model.denoiser.backbone.one_size:
            tile = self.tile or model.size
            if tile != model.size or min(height, width) < tile:
                raise errors.UsageError(
                    f"config.model.name={model.denoiser.backbone.name} takes what has the size of "
                    f"its training alone, {model.size} pixels: give no other --tile, and no side "
                    f"of --size below that; larger pictures are drawn in tiles."
                )
        if max(height, width) <= tile:
            return None
        cells = tile // model.codec.f
        return Tiling(cells, cells // 4)
