"""A page in the browser on which runs are asked for pictures (asking.py); made with Gradio."""

import colorsys
import contextlib
import dataclasses
import json
import pathlib
import tempfile

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from ldm_jax.base import errors
from ldm_jax.diffusion.samplers import SAMPLERS
from ldm_jax.jobs import asking

CANVAS = 256  # pixels of a side of what boxes and maps are painted on
QUEUE = 8  # requests that wait at most; one is drawn at a time
UPLOAD = "20mb"  # of a file at most
TIMES = ("run", "sampler", "steps", "guidance", "pictures", "seconds")
SETTINGS = "ldm_jax"  # name of the text in a PNG that says how it was drawn


def build(paths, gradio):
    """The page as a gradio.Blocks. paths: of the runs, the first of which is shown at first."""
    gr, events = gradio, Events(paths, gradio)
    first = events.artists[paths[0]]
    sheet = dict(canvas_size=(CANVAS, CANVAS), sources=(), type="numpy")
    palette = gr.Brush(colors=colours(events.map_classes)[1:], color_mode="fixed", default_size=32)
    with gr.Blocks(title="ldm_jax") as page:
        gr.Markdown("# ldm_jax")
        with gr.Row():
            with gr.Column(scale=2):
                run = gr.Dropdown(list(paths), value=paths[0], label="Run", visible=len(paths) > 1)
                caption = gr.Textbox(label="Caption", elem_id="caption")
                label = gr.Dropdown(first.classes, label="Class", elem_id="class")
                with gr.Group() as boxing:
                    said = "Paint where an object is, then add its box"
                    canvas = gr.ImageEditor(_sheet(()), label=said, elem_id="canvas", **sheet)
                    thing = gr.Dropdown(first.box_classes, label="Object", allow_custom_value=True)
                    with gr.Row():
                        add, clear = gr.Button("Add box"), gr.Button("Clear")
                boxes = gr.State(())
                with gr.Group() as mapping:
                    said = "Map: class 0 is black"
                    labels = gr.ImageEditor(_sheet((), 0), label=said, brush=palette, **sheet)
                    legend = gr.HTML()
                with gr.Accordion("Begin from a picture", open=False) as beginning:
                    said = "What you paint over is drawn anew; without that, all is varied"
                    # In pixels of the picture, which is not known yet: as if it had the run's size.
                    brush = gr.Brush(default_size=max(2, min(first.size) // 8))
                    picture = gr.ImageEditor(
                        label=said, type="numpy", brush=brush, elem_id="picture"
                    )
                    strength = gr.Slider(0.05, 1, 0.6, label="How much of it is lost")
                with gr.Row():
                    n = gr.Slider(1, asking.MOST, 4, step=1, label="Pictures")
                    seed = gr.Number(0, precision=0, minimum=0, label="Seed")
                with gr.Row():
                    steps = gr.Slider(1, 200, step=1, label="Steps")
                    sampler = gr.Dropdown(list(SAMPLERS.names()), label="Sampler")
                guidance = gr.Slider(0, 10, label="Guidance")
                draw = gr.Button("Draw", variant="primary", elem_id="draw")
                way = gr.Button("Show the way to the first one", elem_id="way")
            with gr.Column(scale=3):
                bar = gr.HTML(elem_id="progress")
                gallery = gr.Gallery(label="Pictures", format="png", columns=4, elem_id="gallery")
                times = gr.Dataframe(headers=list(TIMES), value=[], label="Times", elem_id="times")
                whole = gr.File(label="All in one, with the settings in the PNG", visible=False)
        asked = [run, caption, label, boxes, labels, picture, strength]
        asked += [n, seed, steps, sampler, guidance]
        shown = [caption, label, boxing, thing, mapping, legend, beginning, strength]
        shown += [steps, sampler, guidance]
        draw.click(
            events.draw, [times, *asked], [bar, gallery, whole, times], show_progress="hidden"
        )
        way.click(events.way, asked, gallery)
        add.click(events.add, [canvas, thing, boxes], [boxes, canvas])
        clear.click(lambda: ((), _sheet(())), None, [boxes, canvas])
        run.change(events.choose, run, shown)
        page.load(events.choose, run, shown)
    return page.queue(max_size=QUEUE, default_concurrency_limit=1)


@contextlib.contextmanager
def told(gradio):
    """Refusals within are messages on the page."""
    try:
        yield
    except errors.UsageError as e:
        raise gradio.Error(str(e), print_exception=False) from None


class Events:
    """What the page does; arguments and results are those of its parts, in the order of `build`."""

    def __init__(self, paths, gradio):
        self.gr, self.artists = gradio, {path: asking.Artist(path) for path in paths}
        self.map_classes = max(2, *(artist.map_classes for artist in self.artists.values()))
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="ldm_demo"))

    def draw(self, history, *values):
        """Yields (the progress, the pictures on their way), then all that the page shows of them.

        That is (no progress, the pictures, all in one, the table of times with a line more).
        """
        kept = self.gr.skip()
        yield _bar(), kept, kept, kept
        try:
            artist, request = self._request(*values)
            for answer in artist.watched(request):
                if isinstance(answer, asking.Glance):
                    yield _bar(answer.call, answer.calls), [*answer.images], kept, kept
        except errors.UsageError as e:
            yield "", kept, kept, kept
            raise self.gr.Error(str(e), print_exception=False) from None
        files = [
            _write(self._folder, f"{i:02d}", image, answer.settings | {"image": i})
            for i, image in enumerate(answer.images)
        ]
        whole = _write(self._folder, "all", asking.grid(answer.images), answer.settings)
        took = f"{answer.seconds:.2f}" + (" (compiled)" if answer.compiled else "")
        line = [*(answer.settings[key] for key in TIMES[:4]), len(files), took]
        update = self.gr.update(value=whole, visible=True)
        yield "", files, update, [line, *history.values.tolist()]

    def way(self, *values):
        """[(x_0 on the way to the first picture, its number)]."""
        with told(self.gr):
            artist, request = self._request(*values)
            return [(frame, f"{i + 1}") for i, frame in enumerate(artist.frames(request))]

    def add(self, editor, thing, boxes):
        """(the boxes with one more, a clean sheet that shows them)."""
        _, painted = _layers(editor)
        with told(self.gr):
            if painted is None or thing in (None, ""):
                raise errors.UsageError("Paint where the object is, and choose what it is.")
        rows, columns = (np.flatnonzero(painted.any(axis)) for axis in (1, 0))
        height, width = painted.shape
        corners = columns[0] / width, rows[0] / height
        corners += (columns[-1] + 1) / width, (rows[-1] + 1) / height
        name = int(thing) if str(thing).isdecimal() else thing
        boxes = (*boxes, (*map(float, corners), name))
        return boxes, _sheet(boxes)

    def choose(self, path):
        """What of the page a run shows, and its own settings."""
        artist, update = self.artists[path], self.gr.update
        own, visible = artist.sampling, lambda what: what in artist.tells
        from_one = any(map(visible, asking.PICTURED))
        first_class = next(iter(artist.classes), None)  # of none at all, guided pictures are odd
        return (
            update(visible=visible("caption")),
            update(choices=artist.classes, value=first_class, visible=visible("class")),
            update(visible=visible("boxes")),
            update(choices=artist.box_classes),
            update(visible=visible("map")),
            _legend(artist.map_classes),
            update(open=from_one),
            update(visible=not from_one),
            update(value=own.steps),
            update(value=own.sampler),
            update(value=own.guidance, visible=not artist.student),
        )

    def _request(
        self,
        run,
        caption,
        label,
        boxes,
        labels,
        picture,
        strength,
        n,
        seed,
        steps,
        sampler,
        guidance,
    ):
        background, painted = _layers(picture)
        sampling = dict(steps=int(steps), sampler=sampler, guidance=float(guidance))
        asked = asking.Request(n=int(n), seed=int(seed or 0), sampling=sampling)
        given = dict(
            caption=caption or "", label=label, boxes=boxes, labels=_map(labels, self.map_classes)
        )
        given |= dict(picture=background, hole=painted, strength=strength)
        return self.artists[run], dataclasses.replace(asked, **given)


def _bar(call: int = 0, calls: int = 0) -> str:
    """The progress as HTML; without numbers it moves to and fro, as while a program is compiled."""
    said = f"{call} of {calls} network calls, and the x_0 they lead to"
    said = said if calls else "opening; a new setting is compiled first"
    value = f'value="{call}" max="{calls}"' if calls else ""
    return f'<progress {value} style="width:100%;accent-color:#f97316"></progress> {said}'


def _write(folder, name: str, image, settings: dict) -> str:
    """A PNG that says how it was drawn; its path."""
    text, path = PngInfo(), folder / f"{name}.png"
    text.add_text(SETTINGS, json.dumps(settings))
    Image.fromarray(image).save(path, pnginfo=text)
    return str(path)


def _sheet(boxes, shade: int = 255):
    """What is painted on, with the boxes that are there."""
    sheet = Image.new("RGB", (CANVAS, CANVAS), (shade,) * 3)
    drawing = ImageDraw.Draw(sheet)
    for i, (*corners, name) in enumerate(boxes):
        x0, y0, x1, y1 = (CANVAS * corner for corner in corners)
        drawing.rectangle((x0, y0, x1, y1), outline=colours(8)[1 + i % 7], width=2)
        drawing.text((x0 + 4, y0 + 3), str(name), fill="black")
    return np.asarray(sheet)


def _layers(editor):
    """(the picture uint8 [h, w, 3], where it is painted over bool [h, w]), or None for each."""
    if not editor or editor.get("background") is None:
        return None, None
    painted = [layer[..., 3] > 0 for layer in editor.get("layers", ()) if layer.shape[-1] == 4]
    hole = np.any(painted, axis=0) if painted else None
    background = editor["background"][..., :3]
    empty = hole is None or not hole.any()
    return np.ascontiguousarray(background), None if empty else hole


def colours(count: int) -> list[str]:
    """As many as there are classes: black, then hues far from those beside them."""
    hue = lambda i: colorsys.hsv_to_rgb(i * 0.382 % 1, 0.9 - 0.45 * (i % 2), 1 - 0.15 * (i % 3))
    digits = lambda i: "".join(f"{round(255 * x):02x}" for x in hue(i))
    return ["#000000", *(f"#{digits(i)}" for i in range(count - 1))]


def _legend(count: int) -> str:
    """Which colour is which class, as HTML."""
    squares = enumerate(colours(count)[:count])
    return " ".join(f'<span style="color:{colour}">&#9632;</span>{i}' for i, colour in squares)


def _map(editor, count: int) -> np.ndarray:
    """uint8 [h, w]: the class, below `count`, of the nearest colour."""
    if not editor or editor.get("background") is None:
        return np.zeros((CANVAS, CANVAS), np.uint8)
    picture = editor["composite"][..., :3].astype(np.int32)
    palette = np.array([_rgb(colour) for colour in colours(count)])
    apart = ((picture[..., None, :] - palette) ** 2).sum(-1)
    return apart.argmin(-1).astype(np.uint8)


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
