"""Edits of pictures by a second stage that was not trained for them; see `edit`."""

import dataclasses
import itertools
import pathlib

import numpy as np

from ldm_jax.base import errors, raster
from ldm_jax.diffusion import editing as maths
from ldm_jax.jobs import conditioning, painter, pictures, settings
from ldm_jax.models.conditioners import CONDITIONERS
from ldm_jax.runs import codecs, conditions, keys, opened


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit(settings.Wanted):
    """What to edit and how: the flags of `edit`, which say what each field means."""

    images: str = ""
    masks: str = ""
    strength: float = 0.6
    seeds: tuple[int, ...] = ()
    frames: int = 8

    def read(self):
        """(the names of `images`, [pictures.Picture], uint8 [n, h, w, 3] of them at their size)."""
        if not self.images:
            raise errors.UsageError("--images is missing: give a picture or a folder of them.")
        found = pictures.read("--images", self.images)
        size = settings.read_size(self.size, keys.read(self.run))
        images = np.stack([pictures.fit(picture.pixels, size) for picture in found])
        return [picture.name for picture in found], found, images

    def painter(self, strength: float = 1.0) -> painter.Painter:
        """Checks the settings, then opens the run."""
        how, labels = settings.read(self, strength=strength), None
        if self.labels:
            classes = conditions.classes(how.config)
            labels = conditioning.read_labels(self.labels, classes, self.num, self.seed)
        return painter.Painter(how, labels)

    def owned(self):
        """Holds the folder to write to, once all is checked; see base/owner.py."""
        return settings.owned(self.out, (0, 1))


def inpaint(edit: Edit) -> dict:
    """Draws what lies under the masks from noise, so that it suits what surrounds it."""
    names, found, images = edit.read()
    if not edit.masks:
        raise errors.UsageError("--masks is missing: give masks by the pictures' names.")
    masks = pictures.read_masks(edit.masks, found)
    holes = np.stack([pictures.fit(mask, images.shape[1:3]) for mask in masks])
    artist = edit.painter()
    with edit.owned():
        if "masked_image" in artist.run.model.fields:
            black = np.where(holes[..., None], 0, images)
            mask = holes[..., None].astype(np.float32)
            drawn = artist.draw(len(images), {"masked_image": painter.floats(black), "mask": mask})
        else:
            drawn = artist.draw(len(images), **painter.around(artist.run, images, holes))
        # The official code leaves this step out.
        painted, grey = np.where(holes[..., None], drawn, images), painter.greyed(images, holes)
        return painter.write(edit.out, names, painted, beside=[images, grey])


def vary(edit: Edit) -> dict:
    """Noises pictures to `strength` of the way and denoises them (SDEdit, Meng et al. 2021)."""
    names, _, images = edit.read()
    artist = edit.painter(edit.strength)
    with edit.owned():
        drawn = artist.draw(len(images), init=artist.run.encode(painter.floats(images)))
        return painter.write(edit.out, names, drawn, beside=[images])


def upscale(edit: Edit) -> dict:
    """Draws pictures of the training size from small ones, or from pictures made small."""
    config = keys.read(edit.run)
    given = config.get("conditioners", {}).values()
    if not any("low_res" in CONDITIONERS.get(own["name"]).fields for own in given):
        raise errors.UsageError(f"--run={edit.run} was not trained for super-resolution (low_res).")
    names, found, images = edit.read()
    f = codecs.open_codec(config.first_stage).f
    small = tuple(side // f for side in images.shape[1:3])
    images = np.stack([pictures.fit(picture.pixels, small) for picture in found])
    artist = edit.painter()
    with edit.owned():
        drawn = artist.draw(len(images), {"low_res": painter.floats(images)})
        return painter.write(edit.out, names, drawn, beside=[images.repeat(f, 1).repeat(f, 2)])


def control(edit: Edit) -> dict:
    """Draws pictures that have the edges, or whatever a run's control follows, of given ones."""
    config = keys.read(edit.run)
    if not conditions.controlled(config):
        raise errors.UsageError(f"--run={edit.run} follows no control (configs/control.py).")
    names, _, images = edit.read()
    maker = conditions.make(config, fields=(conditions.HINT,))
    cond = maker.of({"image": image} for image in images)
    drawn = edit.painter().draw(len(images), cond)
    shown = np.rint(255 * cond[conditions.HINT]).astype(np.uint8)
    return painter.write(edit.out, names, drawn, beside=[images, shown])


def interpolate(edit: Edit) -> dict:
    """Goes between pictures' latents in turn, or on the sphere between seeds' noise."""
    if bool(edit.images) == bool(edit.seeds):
        raise errors.UsageError("interpolate goes between --images or --seeds: give one of them.")
    names, _, images = edit.read() if edit.images else (edit.seeds, None, None)
    if len(names) < 2:
        raise errors.UsageError("interpolate needs two pictures, or seeds, at least.")
    along = np.linspace(0, 1, edit.frames, dtype=np.float32)
    artist = edit.painter(edit.strength if edit.images else 1.0)
    with edit.owned():
        if edit.images:
            ends = np.asarray(artist.run.encode(painter.floats(images)))
            mix = lambda a, b: a + along.reshape(-1, 1, 1, 1) * (b - a)
        else:
            ends = np.concatenate([artist.run.noise(seed, [0], artist.size) for seed in names])
            many = lambda end: end.repeat(edit.frames, 0)
            mix = lambda a, b: maths.slerp(many(a), many(b), along)
        states = [np.asarray(mix(a[None], b[None])) for a, b in itertools.pairwise(ends)]
        states = np.concatenate([s[1 if i else 0 :] for i, s in enumerate(states)])
        # All frames share one noise and one class: they differ only in where they are on the way.
        drawn = artist.draw(len(states), same=True, **{"init" if edit.images else "noise": states})
        painter.animate(pathlib.Path(edit.out) / "animation.gif", drawn)
        frames = [f"{i:04d}" for i in range(len(drawn))]
        return painter.write(edit.out, frames, drawn, columns=edit.frames) | {"between": names}


def progress(edit: Edit) -> dict:
    """Shows a row of x_t and a row of predicted x_0 for every picture."""
    artist = edit.painter()
    with edit.owned():
        noisy, clean = artist.trace(edit.num, edit.frames)  # [frames, n, h, w, 3]
        summary = painter.write(edit.out, [f"{i:04d}" for i in range(edit.num)], clean[-1])
        rows = [series[:, i] for i in range(edit.num) for series in (noisy, clean)]
        return summary | painter.sheet(edit.out, np.concatenate(rows), edit.frames)


def reconstruct(edit: Edit) -> dict:
    """Sends pictures through the first stage and back."""
    names, _, images = edit.read()
    run = opened.load(edit.run, ema=edit.ema, decoder=edit.decoder)
    with edit.owned():
        batches = [images[i : i + edit.batch_size] for i in range(0, len(images), edit.batch_size)]
        parts = [
            raster.to_uint8(run.decode(run.encode(painter.floats(batch)))) for batch in batches
        ]
        drawn = np.concatenate([np.asarray(part) for part in parts])
        squared = np.mean((drawn.astype(np.float64) - images) ** 2, axis=(1, 2, 3))
        quality = {"psnr_db": float(np.mean(10 * np.log10(255**2 / np.maximum(squared, 1e-9))))}
        return painter.write(edit.out, names, drawn, beside=[images]) | quality
