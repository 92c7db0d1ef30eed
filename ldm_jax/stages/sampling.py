"""How images are drawn, as one value: what a config's `sample` group and a job's manifest hold."""

import dataclasses

from ldm_jax.base import errors
from ldm_jax.diffusion import grids, guidance, samplers
from ldm_jax.diffusion.process import Process
from ldm_jax.diffusion.tiles import Tiling

WHOLE = 2  # images up to so many times the training size are drawn in one piece by default

CHOICES = {  # field: the registry that its value names an entry of, and the fields that are options
    "sampler": (samplers.SAMPLERS, ("eta",)),
    "spacing": (grids.GRIDS, ("rho",)),
    "rule": (guidance.GUIDANCES, ("rescale",)),
}


@dataclasses.dataclass(frozen=True)
class Sampling:
    """One field is one key of `config.sample`.

    sampler: a name of diffusion.methods; eta: ddim's share of fresh noise.
    spacing: a name of diffusion.grids; rho: how karras spaces its levels.
    guidance: scale, 1 for none; rule: a name of diffusion.guidance; rescale: of rule "linear".
    interval: noise levels (low, high) at which guidance acts (`guidance.within`), () for all.
    clip: bound of every predicted x_0, in scaled latents, as pixel models want it; 0 for none.
    strength: share of the steps that are taken, the last ones, where an image is the beginning.
    tile: pixels of the tiles' sides; 0 takes tiles, of twice the training size, only for images
      that are larger than that.
    """

    sampler: str = "ddim"
    steps: int = 50
    eta: float = 0.0
    guidance: float = 1.0
    spacing: str = "exact"
    rescale: float = 0.0
    interval: tuple[float, ...] = ()
    clip: float = 0.0
    strength: float = 1.0
    tile: int = 0
    rho: float = 7.0
    rule: str = "linear"

    def __post_init__(self):
        object.__setattr__(self, "interval", tuple(self.interval))  # JSON has lists
        for field, (registry, options) in CHOICES.items():
            given = {option: getattr(self, option) for option in options}
            registry.taken(getattr(self, field), **given)
        guidance.check(self.rescale, self.interval)
        if not 0 < self.strength <= 1:
            raise errors.UsageError(f"strength={self.strength} must be above 0 and at most 1.")

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
        return Sampling(**settings)

    def grid(self, process: Process) -> grids.Grid:
        """The time grid; bad names and numbers are a UsageError."""
        grid = grids.GRIDS.call(self.spacing, process, self.steps, rho=self.rho)
        return grid.last(max(1, round(self.strength * len(grid))))

    def method(self, process: Process) -> samplers.Method:
        """What the sampler does at each network call."""
        return samplers.SAMPLERS.call(self.sampler, self.grid(process), eta=self.eta)

    def combine(self, strong, weak):
        """The guided x_0 from two predictions of it, [b, ...]."""
        options = {"rescale": self.rescale}
        return guidance.GUIDANCES.call(self.rule, strong, weak, self.guidance, **options)

    def calls(self, process: Process) -> int:
        """Network calls for an image (NFE); classifier-free guidance doubles the batch of each."""
        return len(self.method(process))

    def tiling(self, model, height: int, width: int) -> Tiling | None:
        """Tiles of the latents for images of this size; None draws them whole.

        model: a stages.diffuse.Diffuse. A quarter of a tile overlaps the next.
        """
        tile = self.tile or WHOLE * model.size
        if max(height, width) <= tile:
            return None
        if tile % model.divisor:
            nearest = max(1, round(tile / model.divisor)) * model.divisor
            raise errors.UsageError(
                f"tile={tile} must divide by {model.divisor}, as images do; nearest: {nearest}."
            )
        cells = tile // model.codec.f
        return Tiling(cells, cells // 4)
