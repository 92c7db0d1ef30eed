"""A page in the browser on which runs are asked for pictures (asking.py); made with Gradio."""

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
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#ffe119", "#911eb4", "#f58231", "#46f0f0", "#808080")
SETTINGS = "ldm_jax"  # name of the text in a PNG that says how it was drawn


def build(paths, gradio):
    """The page as a gradio.Blocks. paths: of the runs, the first of which is shown at first."""
    gr, artists = gradio, {path: asking.Artist(path) for path in paths}
    first = artists[paths[0]]
    folder = pathlib.Path(tempfile.mkdtemp(prefix="ldm_demo"))
    told = lambda artist, what: gr.update(visible=what in artist.tells)

    def guarded(function):
        """Its refusals as messages on the page."""

        def call(*args):
            try:
                return function(*args)
            except errors.UsageError as e:
                raise gr.Error(str(e), print_exception=False) from None

        return call

    with gr.Blocks(title="ldm_jax") as page:
        gr.Markdown("# ldm_jax")
        with gr.Row():
            with gr.Column(scale=2):
                run = gr.Dropdown(list(paths), value=paths[0], label="Run", visible=len(paths) > 1)
                caption = gr.Textbox(label="Caption", elem_id="caption")
                label = gr.Dropdown(first.classes, label="Class", elem_id="class")
                with gr.Group() as boxing:
                    canvas = gr.ImageEditor(
                        value=_sheet(()), label="Paint where an object is, then add its box",
                        canvas_size=(CANVAS, CANVAS), elem_id="canvas", sources=(), type="numpy",
                    )  # fmt: skip
                    thing = gr.Dropdown(first.box_classes, label="Object", allow_custom_value=True)
                    with gr.Row():
                        add, clear = gr.Button("Add box"), gr.Button("Clear")
                boxes = gr.State(())
                labels = gr.ImageEditor(
                    value=_sheet((), 0), label="Map: a colour for each class, black for class 0",
                    canvas_size=(CANVAS, CANVAS), sources=(), type="numpy",
                    brush=gr.Brush(colors=list(COLOURS), color_mode="fixed", default_size=32),
                )  # fmt: skip
                with gr.Accordion("Begin from a picture", open=False) as beginning:
                    picture = gr.ImageEditor(
                        label="What you paint over is drawn anew; without that, all is varied",
                        type="numpy", brush=gr.Brush(default_size=24), elem_id="picture",
                    )  # fmt: skip
                    strength = gr.Slider(0.05, 1, 0.6, label="How much of it is lost")
                with gr.Row():
                    n = gr.Slider(1, asking.MOST, 4, step=1, label="Pictures")
                    seed = gr.Number(0, precision=0, minimum=0, label="Seed")
                with gr.Row():
                    steps = gr.Slider(1, 200, first.sampling.steps, step=1, label="Steps")
                    sampler = gr.Dropdown(
                        list(SAMPLERS.names()), value=first.sampling.sampler, label="Sampler"
                    )
                guidance = gr.Slider(0, 10, first.sampling.guidance, label="Guidance")
                draw = gr.Button("Draw", variant="primary", elem_id="draw")
                way = gr.Button("Show the way to the first one", elem_id="way")
            with gr.Column(scale=3):
                gallery = gr.Gallery(label="Pictures", format="png", columns=4, elem_id="gallery")
                times = gr.Dataframe(
                    headers=["run", "sampler", "steps", "guidance", "pictures", "seconds"],
                    value=[], interactive=False, label="Times", elem_id="times",
                )  # fmt: skip
                sheet = gr.File(label="All in one, with the settings in the PNG", visible=False)

        asked = [run, caption, label, boxes, labels, picture, strength]
        asked += [n, seed, steps, sampler, guidance]

        def request(run, caption, label, boxes, labels, picture, strength, n, seed, *how):
            artist = artists[run]
            background, painted = _layers(picture)
            names = ("steps", "sampler", "guidance")
            sampling = dict(zip(names, (int(how[0]), how[1], float(how[2]))))
            return artist, asking.Request(
                n=int(n), seed=int(seed or 0), sampling=sampling, caption=caption or "",
                label=label, boxes=boxes, labels=_map(labels), picture=background, hole=painted,
                strength=strength,
            )  # fmt: skip

        def on_draw(history, *values):
            artist, wanted = request(*values)
            answer = artist.answer(wanted)
            files = [
                _write(folder, f"{i:02d}", image, answer.settings | {"image": i})
                for i, image in enumerate(answer.images)
            ]
            whole = _write(folder, "all", asking.grid(answer.images), answer.settings)
            about = [answer.settings[key] for key in ("run", "sampler", "steps", "guidance")]
            took = f"{answer.seconds:.2f}" + (" (compiled)" if answer.compiled else "")
            line = [*about, len(files), took]
            return files, gr.update(value=whole, visible=True), [line, *history.values.tolist()]

        def on_way(*values):
            artist, wanted = request(*values)
            return [(frame, f"{i + 1}") for i, frame in enumerate(artist.frames(wanted))]

        def on_run(path):
            artist = artists[path]
            own = artist.sampling
            return (
                told(artist, "caption"),
                gr.update(choices=artist.classes, value=None, visible="class" in artist.tells),
                told(artist, "boxes"),
                gr.update(choices=artist.box_classes),
                told(artist, "map"),
                gr.update(open=bool({"small", "hole"} & {*artist.tells})),
                gr.update(visible=not {"small", "hole"} & {*artist.tells}),
                gr.update(value=own.steps),
                gr.update(value=own.sampler),
                gr.update(value=own.guidance, visible=not artist.student),
            )

        def on_add(editor, thing, boxes):
            _, painted = _layers(editor)
            if painted is None or thing in (None, ""):
                raise errors.UsageError("Paint where the object is, and choose what it is.")
            rows, columns = (np.flatnonzero(painted.any(axis)) for axis in (1, 0))
            height, width = painted.shape
            corners = columns[0] / width, rows[0] / height
            corners += (columns[-1] + 1) / width, (rows[-1] + 1) / height
            name = int(thing) if str(thing).isdecimal() else thing
            boxes = (*boxes, (*map(float, corners), name))
            return boxes, _sheet(boxes)

        draw.click(guarded(on_draw), [times, *asked], [gallery, sheet, times])
        way.click(guarded(on_way), asked, gallery)
        add.click(guarded(on_add), [canvas, thing, boxes], [boxes, canvas])
        clear.click(lambda: ((), _sheet(())), None, [boxes, canvas])
        shown = [caption, label, boxing, thing, labels, beginning, strength]
        shown += [steps, sampler, guidance]
        run.change(on_run, run, shown)
        page.load(on_run, run, shown)
    return page.queue(max_size=QUEUE, default_concurrency_limit=1)


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
        drawing.rectangle((x0, y0, x1, y1), outline=COLOURS[i % len(COLOURS)], width=2)
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


def _map(editor) -> np.ndarray:
    """Integers [h, w]: 0, or 1 more than the index of the colour that was painted."""
    if not editor or editor.get("background") is None:
        return np.zeros((CANVAS, CANVAS), np.int32)
    picture = editor["composite"][..., :3].astype(np.int32)
    palette = [(0, 0, 0), *(_rgb(colour) for colour in COLOURS)]
    apart = ((picture[..., None, :] - np.array(palette)) ** 2).sum(-1)
    return apart.argmin(-1).astype(np.int32)


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
