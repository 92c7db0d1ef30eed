"""The pages: one training, and several beside each other."""

from ldm_jax.base import config as config_lib
from ldm_jax.base import disk, errors
from ldm_jax.reports import curves, markup, recipe
from ldm_jax.reports.history import History

GRIDS = 6  # pictures of a kind at most, evenly spread over training


def training(run: str, spec: str = "") -> str:
    """The page of a run. spec: the recipe to compare its config with; the nearest by default."""
    history = History(run)
    one = [history]
    if spec:
        name, rows = spec, recipe.difference(config_lib.load(spec, flag="--recipe"), history.config)
    else:
        name, rows = recipe.nearest(history.config)
    against = "" if spec else ", the nearest recipe"
    parts = [
        markup.paragraph(
            f"This is {_kind(history)}, at step {history.step:,} of {history.config.steps.total:,}."
        ),
        *map(markup.paragraph, filter(None, (history.parameters, *history.origin))),
        "<h2>What went wrong</h2>",
        *map(markup.paragraph, history.alarms or ["No rollback, no replaced record."]),
        "<h2>Evaluation</h2>",
        _last(one),
        *map(markup.figure, curves.evaluations(one)),
        "<h2>Training</h2>",
        *map(markup.figure, curves.losses(one) + curves.rates(one)),
        "<h2>Pictures</h2>",
        *_pictures(history),
        "<h2>Time</h2>",
        *([markup.paragraph(f"Goodput: {history.goodput}.")] if history.goodput else []),
        *map(markup.figure, curves.speed(one)),
        f"<h2>Config, against {markup.escape(name)}{against}</h2>" if name else "<h2>Config</h2>",
        markup.table(["key", name, "this run"], rows)
        if rows
        else markup.paragraph("No difference."),
    ]
    return markup.page(history.name, parts)


def comparison(runs) -> str:
    """The page of several runs: what they reached, where their configs differ, all curves.

    Raises UsageError for runs of different stages, or one run given twice.
    """
    histories = [History(run) for run in runs]
    names = [history.name for history in histories]
    kinds = [_kind(history) for history in histories]
    if len({*kinds}) > 1:
        said = ", ".join(f"{name} is {kind}" for name, kind in zip(names, kinds))
        raise errors.UsageError(f"{said}: compare runs of one kind.")
    if len({*names}) < len(names):
        raise errors.UsageError(f"{', '.join(names)}: give every run once.")
    rows = recipe.difference(*(history.config for history in histories))
    rows_of = lambda said: [[history.name, said(history)] for history in histories]
    parts = [
        markup.table(["run", "steps"], rows_of(lambda h: f"{h.step:,}")),
        "<h2>Evaluation</h2>",
        _last(histories),
        *map(markup.figure, curves.evaluations(histories)),
        "<h2>Config</h2>",
        markup.table(["key", *names], rows) if rows else markup.paragraph("No difference."),
        "<h2>Training</h2>",
        *map(markup.figure, curves.losses(histories)),
        "<h2>Time</h2>",
        markup.table(["run", "goodput"], rows_of(lambda h: h.goodput or "not recorded")),
        *map(markup.figure, curves.speed(histories)),
    ]
    return markup.page("Comparison of " + ", ".join(names), parts)


def _kind(history) -> str:
    return f"a run of stage {history.config.get('stage')}"


def _last(histories) -> str:
    """The newest figures of held-out records, and those of `evaluate`, a column for each run."""
    rows = {}
    for i, history in enumerate(histories):
        newest = {name: values[-1] for name, (_, values) in history.held_out.items()}
        measured = {f"{name} (evaluate)": value for name, value in history.evaluation.items()}
        for name, value in (newest | measured).items():
            rows.setdefault(name, ["-"] * len(histories))[i] = value
    if not rows:
        return markup.paragraph("Nothing was evaluated yet.")
    head = ["held-out records", *(history.name for history in histories)]
    note = markup.paragraph("In brackets 95 % intervals, where they are known.")
    return markup.table(head, [[name, *values] for name, values in rows.items()]) + note


def _pictures(history) -> list[str]:
    parts = []
    for name, files in history.pictures().items():
        last = len(files) - 1
        shown = sorted({round(i * last / (GRIDS - 1)) for i in range(GRIDS)})
        for file in (files[i] for i in shown):
            step = int(file.stem.rpartition("_")[2])
            parts.append(markup.image(disk.read_bytes(file), f"{name}, step {step:,}"))
    return parts or [markup.paragraph("There are none yet.")]
