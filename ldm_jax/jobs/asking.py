"""A second stage that is asked for pictures, one request at a time: what a demo page stands on."""

import concurrent.futures
import dataclasses
import functools
import time
from typing import NamedTuple

import numpy as np

from ldm_jax.base import errors, raster, values
from ldm_jax.jobs import painter, pictures, settings
from ldm_jax.models.conditioners import label_of
from ldm_jax.runs import conditions, data

# What can be told of a picture, by the field that a conditioner reads.
TELLS = {
    "class": "class",
    "text_ids": "caption",
    "layout_ids": "boxes",
    "segmentation": "map",
    "low_res": "small",
    "mask": "hole",
    "hint": "hint",
}
PICTURED = {"small": "a small picture", "hole": "a picture", "hint": "a picture to follow"}
HANDED = ("map", "picture")  # hints that are not made of a picture, but are one
MOST = 64  # pictures of a request
FRAMES = 8  # of the way to the first picture
GLANCES = 4  # pictures that are shown on their way
PAUSE = 0.4  # seconds between two glances at least
SIDE = 8192  # pixels of a side of a picture that is handed in, at most


@dataclasses.dataclass(frozen=True)
class Request:
    """Fields that the model is not conditioned on are not looked at.

    n, seed: how many pictures, of which noise.
    sampling: {setting of the sampler: value}; the others are the run's own.
    label: id or name of the class. boxes: ((x0, y0, x1, y1, id or name), ...), corners in [0, 1].
    labels: the semantic map, uint8 [h, w].
    picture: uint8 [h, w, 3]: what super-resolution enlarges, what is painted anew under `hole`
      (bool [h, w]), what a control follows (its edges, or itself), or what to begin from;
      strength: how much of that is lost.
    """

    n: int = 4
    seed: int = 0
    sampling: dict = dataclasses.field(default_factory=dict)
    caption: str = ""
    label: int | str | None = None
    boxes: tuple = ()
    labels: np.ndarray | None = None
    picture: np.ndarray | None = None
    hole: np.ndarray | None = None
    strength: float = 0.6


class Answer(NamedTuple):
    """images: uint8 [n, h, w, 3]; seconds: to draw them; settings: all that they depend on.

    compiled: whether the seconds hold those of compiling.
    """

    images: np.ndarray
    seconds: float
    settings: dict
    compiled: bool


class Glance(NamedTuple):
    """What is drawn, on its way: the x_0 predicted in a network call of so many.

    images: uint8 [n, h, w, 3], n at most GLANCES.
    """

    call: int
    calls: int
    images: np.ndarray


class Artist:
    """A run that answers requests.

    Attributes:
      tells: what its pictures are told, values of TELLS.
      classes, box_classes: names, where the run's data is there to say them, or ids.
      map_classes: of its semantic map. sampling: its own, a stages.sampling.Sampling.
      size: (height, width). student: whether its guidance is in its weights.
    """

    def __init__(self, path: str):
        self.path, how = (
            path,
            settings.read(
                settings.Wanted(run=path, out="", num=MOST, batch_size=MOST, sampling={})
            ),
        )
        self.sampling, self.size, self._config = how.sampling, how.size, how.config
        self.run = how.open()
        self._source = self._opened()
        fields = (TELLS[field] for field in self.run.model.fields if field in TELLS)
        self.tells = [*dict.fromkeys(fields)]  # two conditioners may read one field
        named = self._source.classes if self._source else ()
        self.classes = [*(named or map(str, range(self.run.num_classes)))]
        self.box_classes = [*self._source.box_classes] if self._source else []
        label = label_of(self._config.conditioners, "segmentation")
        self.map_classes = self._config.conditioners[label].classes if label else 0
        label = label_of(self._config.conditioners, conditions.HINT)
        self._hint = self._config.conditioners[label].get("hint", "picture") if label else ""
        told = conditions.told(self._config)
        self.student = bool(self._config.distil.method) and told is None
        self._drawn = set()

    def _opened(self):
        try:
            return data.open_source(self._config.data)
        except errors.UsageError:  # its data has gone: ids serve as names
            return None

    @functools.cached_property
    def _maker(self):
        return conditions.make(self._config, self._source)

    def watched(self, request: Request):
        """Yields a Glance now and then while it draws, and then what `answer` returns.

        Between network calls nothing waits for a glance: where several calls are done, the newest
        is shown, and decoding takes a quarter of the time at most.
        """
        newest, pause = [], PAUSE

        def seen(*what):
            newest[:] = [what]

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            drawn = pool.submit(self.answer, request, seen)
            while not concurrent.futures.wait([drawn], pause).done:
                if newest:
                    call, calls, x_0 = newest.pop()
                    begin = time.monotonic()
                    images = np.asarray(raster.to_uint8(self.run.decode(x_0[:GLANCES])))
                    pause = max(PAUSE, 3 * (time.monotonic() - begin))
                    yield Glance(call, calls, images)
            yield drawn.result()

    def answer(self, request: Request, seen=None) -> Answer:
        """Draws what is asked for; what cannot be drawn is a UsageError.

        seen: (network calls done, of how many, x_0 [n, h/f, w/f, c]) -> None, while it draws.
        """
        values.check("n", request.n, values.Number(1, MOST, whole=True))
        values.check("seed", request.seed, values.of(values.Seed))
        picture, hole = self._framed(request)
        how = self.sampling.over(request.sampling)
        begin, arrays = time.monotonic(), {}
        if picture is not None and not PICTURED.keys() & {*self.tells}:
            strength = {} if hole is not None else {"strength": request.strength}
            how = self.sampling.over(request.sampling | strength)
            arrays = {"init": self.run.encode(painter.floats(picture)[None])}
            if hole is not None:
                arrays = painter.around(self.run, picture[None], hole[None])
        cond = self._cond(request, picture, hole)
        many = lambda one: {k: np.repeat(v, request.n, 0) for k, v in (one or {}).items()}
        program = (how, request.n, seen is None, *sorted(arrays), *sorted(cond or {}))
        fresh = program not in self._drawn
        draw = self.run.draw
        if seen is not None:
            calls = len(how.method(self.run.model.process))
            draw = functools.partial(self.run.watch, lambda i, x_0: seen(i + 1, calls, x_0))
        images = draw(request.n, how, request.seed, many(cond), self.size, **many(arrays))
        if hole is not None:
            images = np.where(hole[..., None], images, picture)
        self._drawn.add(program)
        about = {"run": self.path, "weights": self.run.digest, "seed": request.seed}
        about |= dataclasses.asdict(how) | self._said(request)
        return Answer(images, time.monotonic() - begin, about, fresh)

    def frames(self, request: Request) -> np.ndarray:
        """The predicted x_0 on the way to the first picture, uint8 [frames, h, w, 3]."""
        how = self.sampling.over(request.sampling)
        cond = self._cond(request, *self._framed(request))
        frames = min(FRAMES, how.steps)
        return self.run.trace(1, how, request.seed, cond, self.size, frames)[1][:, 0]

    def _framed(self, request):
        """The picture and the hole at the size of the run; None where there are none."""
        picture, hole = request.picture, request.hole
        if picture is None:
            if wanted := PICTURED.keys() & {*self.tells}:
                raise errors.UsageError(
                    f"Give a picture: this run draws from one ({wanted.pop()})."
                )
            return None, None
        if max(picture.shape[:2]) > SIDE:
            raise errors.UsageError(f"The picture has more than {SIDE} pixels on a side.")
        if hole is not None and not hole.any():
            hole = None
        if "hole" in self.tells and hole is None:
            raise errors.UsageError("Paint over what is to be drawn anew.")
        fit = lambda array: None if array is None else pictures.fit(array, self.size)
        return fit(picture), fit(hole)

    def _cond(self, request, picture, hole) -> dict | None:
        """{field: [1, ...]}; None for the null condition, or of an unconditional run."""
        record = {"caption": request.caption, "boxes": [box[:4] for box in request.boxes]}
        record |= {"box_class": [box[4] for box in request.boxes]}
        if request.label not in (None, ""):
            label = request.label
            record["class"] = int(label) if str(label).isdecimal() else label
        if request.labels is not None:
            record["segmentation"] = pictures.fit(request.labels, self.size)
        if picture is not None:
            f = self.run.model.codec.f
            small = pictures.fit(picture, tuple(side // f for side in self.size))
            record |= {"image": picture, "low_res": small}
            record |= {"hint": picture} if self._hint in HANDED else {}
            record |= {} if hole is None else {"mask": hole}
        if not self.tells or (self.tells == ["class"] and "class" not in record):
            return None
        return self._maker.of([record])

    def _said(self, request) -> dict:
        given = {"caption": request.caption, "class": request.label, "boxes": request.boxes}
        return {name: value for name, value in given.items() if name in self.tells and value}


def grid(images: np.ndarray) -> np.ndarray:
    """All pictures as one, uint8 [h, w, 3]."""
    return raster.grid(images, int(np.ceil(np.sqrt(len(images)))))
