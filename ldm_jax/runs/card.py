"""The model card of a published run: what the run knows of itself, and what it does not know."""

import math
import pathlib

from ldm_jax.base import config as config_lib
from ldm_jax.base import disk, errors
from ldm_jax.runs import conditions, keys, kinds

CODE = "ldm_jax"
SAID_AT_MOST = 60  # lines of what differs from the defaults
ERRORS = ("_std", "_low", "_high")  # endings of what says how sure a figure is
# {what a reader would look for: beginnings of the figures that say it}
DRAWS = {
    "FID of samples": ("fid",),
    "precision and recall of samples": ("precision", "recall"),
    "how well samples match their conditions": ("class_accuracy", "adherence"),
}
RECONSTRUCTS = {"PSNR": ("psnr_db",), "LPIPS": ("lpips",), "FID of reconstructions": ("rfid",)}
# What a run's record calls the digests of networks that it took from elsewhere.
FROZEN = {
    "digest": "the first stage",
    "conditioners": "the conditioners' files",
    "lpips": "LPIPS",
    "encoder": "the encoder",
    "teacher": "the teacher",
    "weaker": "the weaker run",
}
NEVER = (
    "memorised training images",
    "bias and unsafe content",
    "judgements of people",
    "the energy that training took",
)


def facts(record, name, step, digest, ema=True, license="", data_license="", evaluations=()):
    """What a card says of a run, as a dict.

    Args:
      name: hf:OWNER/NAME.
      step, digest, ema: of the weights that are published; ema: as of snapshots.read_params.
      license, data_license: of the weights and of the data, as the publisher says.
      evaluations: summaries of `evaluate` beside the one in the run's evaluation/.

    Raises:
      UsageError: an evaluation that is none, or of other weights.
    """
    config, notes = record.config, []
    averages = bool(config.optim[kinds.of(config).player].ema)
    weights = {"step": step, "digest": digest, "ema": ema if averages else True}
    with errors.of("--evaluations"):
        found = [_evaluation(path, weights, record.path) for path in evaluations]
    own = record.path / "evaluation" / "summary.json"
    if disk.there(own):
        try:
            found.insert(0, _evaluation(own, weights))
        except errors.UsageError as e:
            notes.append(f"left out of the card: {e}")
    kept = {True: "the average that was evaluated in training", False: "without their average"}
    trained = record.path / "summary.json"
    return {
        "name": name,
        "config": config,
        "data": record.data,
        "step": step,
        "digest": digest,
        "average": kept.get(ema, f"the average of length {ema}") if averages else "as trained",
        "frozen": {what: record.frozen[k] for k, what in FROZEN.items() if k in record.frozen},
        "license": license,
        "data_license": data_license,
        "evaluations": found,
        "training": disk.read_json(trained) if disk.there(trained) else {},
        "notes": notes,
        "loads_as": "",
        "without": "",
        "pictures": "",
    }


def text(facts: dict) -> str:
    """The card, Markdown below a header of YAML."""
    parts = [_about(facts), _use(facts), _data(facts), _training(facts), _evaluations(facts)]
    return f"---\n{_header(facts)}\n---\n\n" + "\n\n".join(parts) + "\n"


def _header(facts) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    data, draws = facts["config"].data, kinds.of(facts["config"]).draws
    tag = "unconditional-image-generation" if draws else "image-feature-extraction"
    if draws and {"text", "clip"} & {c.name for c in facts["config"].conditioners.values()}:
        tag = "text-to-image"
    source = dict(dataset_type=data.source, dataset_name=_named(data))
    results = [
        EvalResult(task_type=tag, metric_type=figure, metric_value=value, **source)
        for summary in facts["evaluations"]
        for figure, value in _figures(summary)
    ]
    given = dict(license=facts["license"] or None, pipeline_tag=tag, eval_results=results or None)
    library = "diffusers" if facts["loads_as"] else CODE
    tags = [CODE, "jax", "latent-diffusion"]
    name = facts["name"].rpartition("/")[2]
    return ModelCardData(library_name=library, tags=tags, model_name=name, **given).to_yaml()


def _about(facts) -> str:
    config, kind = facts["config"], kinds.of(facts["config"])
    lines = [f"# {facts['name'].rpartition('/')[2]}", ""]
    what = f"{kind.title[0].upper()}{kind.title[1:]} of a latent diffusion model (Rombach et al. "
    what += f"2022, arXiv 2112.10752), network `{config.model.name}`, images of {config.data.size}"
    lines.append(f"{what} pixels, trained with {CODE}.")
    if kind.draws and config.conditioners:
        lines += ["", f"Conditions: {', '.join(f'`{label}`' for label in config.conditioners)}."]
    if facts["pictures"]:
        of = "Samples" if kind.draws else "Images and their reconstructions"
        lines += ["", f"![{of}]({facts['pictures']})", "", f"*{of}, as the run drew them last.*"]
    return "\n".join(lines)


def _use(facts) -> str:
    name, repository = facts["name"], facts["name"].partition(":")[2]
    lines = ["## Use", "", "```python", f"import {CODE}", f'run = {CODE}.load("{name}")']
    if kinds.of(facts["config"]).draws:
        classes = conditions.classes(facts["config"])
        cond = ', cond={"class": [0, 1, 2, 3]}' if classes else ""
        lines += [f"images = run.sample(4{cond})  # [4, h, w, 3] in [-1, 1]", "```", ""]
        lines += ["```bash", f"python -m {CODE}.sample --run={name} --out=samples --num=64", "```"]
    else:
        lines += ["z = run.encode(images)  # [n, h, w, 3] in [-1, 1]", "x = run.decode(z)", "```"]
    if facts["loads_as"]:
        lines += ["", f"diffusers loads it from `{repository}`: {facts['loads_as']}."]
    else:
        lines += ["", f"It comes without files for diffusers: {facts['without']}"]
    return "\n".join(lines)


def _data(facts) -> str:
    data = facts["config"].data
    rows = {
        "source": _named(data),
        "fingerprint": facts["data"] or "not recorded",
        "licence of the data": facts["data_license"] or "not said by the publisher",
        "licence of these weights": facts["license"] or "not said by the publisher",
        "held out": f"{data.holdout:.3g} of the records",
    }
    return _table("Data", rows)


def _training(facts) -> str:
    config = facts["config"]
    optimizers = [
        f"{name}: {own.name}, lr {own.lr:g}, batch {config.batch_size}"
        for name, own in config.optim.items()
    ]
    rows = {
        "steps": f"{facts['step']:,} (of {config.steps.total:,} asked for)",
        "images seen": f"{facts['step'] * config.batch_size:,}",
        "optimizers": "; ".join(optimizers),
        "type of the computation": config.dtype,
        "started from": pathlib.PurePath(config.init_from or "nothing").name,
        "these weights": facts["average"],
        "digest of these weights": f"`{facts['digest']}`",
        **{f"digest of {what}": f"`{found}`" for what, found in facts["frozen"].items()},
    }
    last = facts["training"]
    if "images_per_second" in last:
        rows["images a second"] = f"{last['images_per_second']:.3g}"
    recipe = config_lib.difference(keys.complete(kinds.of(config).defaults()), config)
    more = len(recipe) - SAID_AT_MOST
    recipe = recipe[:SAID_AT_MOST] + ([f"... and {more} more"] if more > 0 else [])
    again = f"python -m {CODE}.train --config={CODE}/config.json --workdir=RUN"
    said = f"`{CODE}/config.json` is the whole config, which this trains again where the data is:"
    lines = [_table("Training", rows), "", said, "", "```bash", again, "```", ""]
    lines += ["It differs from the defaults in:", "", "```", *map(_without_places, recipe), "```"]
    return "\n".join(lines)


def _evaluations(facts) -> str:
    lines, known = ["## Evaluation", ""], set()
    for summary in facts["evaluations"]:
        measured = summary["protocol"]["measurement"]
        lines += ["| figure | value | standard error | from | to |", "|---|---|---|---|---|"]
        for figure, value in _figures(summary):
            known.add(figure)
            sure = [summary.get(figure + ending) for ending in ERRORS]
            shown = ["" if x is None else f"{x:.4g}" for x in sure]
            lines.append(f"| {figure} | {value:.5g} | {' | '.join(shown)} |")
        lines += ["", "Measured as follows (`measurement`), of this (`subject`):", "", "```"]
        for part, own in (("measurement", measured), ("subject", summary["protocol"]["subject"])):
            lines += [_without_places(line) for line in _lines(part, own)]
        lines += ["```", ""]
    if not facts["evaluations"]:
        lines += ["No evaluation of these weights was published with them.", ""]
    last = {k: v for k, v in facts["training"].items() if k not in ("steps", "seconds")}
    last = [(k, v) for k, v in last.items() if _is_figure(k, v) and k != "images_per_second"]
    if last:
        known |= {k for k, _ in last}
        lines += ["While it trained, on held-out records, last:", ""]
        lines += ["| figure | value |", "|---|---|"]
        lines += [f"| {figure} | {value:.5g} |" for figure, value in last] + [""]
    wanted = DRAWS if kinds.of(facts["config"]).draws else RECONSTRUCTS
    begins = lambda names: any(figure.startswith(names) for figure in known)
    missing = [what for what, names in wanted.items() if not begins(names)]
    return "\n".join([*lines, f"Not measured: {', '.join([*missing, *NEVER])}."])


def _evaluation(path, weights: dict, run=None) -> dict:
    """A summary of `evaluate` of the weights {"step", "digest", "ema"}.

    run: the folder that a summary of a run itself has to be of; None asks for no name.
    """
    path = pathlib.Path(path)
    path = path / "summary.json" if path.is_dir() else path
    found = disk.read_json(path)
    protocol = found.get("protocol")
    if not isinstance(protocol, dict) or not {"measurement", "subject", "figures"} <= set(protocol):
        raise errors.UsageError(f"{path} holds no protocol: it is not a summary of evaluate.")
    if drawn := found.get("manifest"):
        same, which = drawn.get("weights") == weights["digest"], drawn.get("weights")
    else:
        lengths, which = found.get("ema"), f"of {found.get('run')}, step {found.get('step')}"
        same = found.get("step") == weights["step"]
        same &= lengths == [weights["ema"]] if lengths else weights["ema"] is True
        same &= run is None or pathlib.Path(str(found.get("run"))).resolve() == run.resolve()
    if not same:
        raise errors.UsageError(
            f"{path} measured other weights ({which}) than those that are published (step "
            f"{weights['step']}, {weights['digest']}): evaluate these."
        )
    return found


def _figures(summary: dict) -> list[tuple[str, float]]:
    names = [*summary["protocol"]["figures"], "class_accuracy"]
    return [
        (name, summary[name])
        for name in dict.fromkeys(names)
        if not name.endswith(ERRORS) and _is_figure(name, summary.get(name))
    ]


def _is_figure(name, value) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and not name.endswith("seconds")


def _named(data) -> str:
    """What a data set is called, without the place on the machine where it lies."""
    path = pathlib.PurePath(data.path).name if data.path else ""
    return " ".join(filter(None, (data.source, data.name or path, data.split)))


def _lines(key: str, value) -> list[str]:
    """`measurement.n: 50000` for each value of a nested dict."""
    if isinstance(value, dict):
        return [line for name, inner in value.items() for line in _lines(f"{key}.{name}", inner)]
    return [f"{key}: {value}"]


def _without_places(line: str) -> str:
    """A line in which the paths of a machine are names."""
    words = line.split(" ")
    is_path = lambda word: word.startswith(("/", "~", "gs://"))
    return " ".join(pathlib.PurePosixPath(w).name if is_path(w) else w for w in words)


def _table(title: str, rows: dict) -> str:
    lines = [f"## {title}", "", "| | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {key} | {value} |" for key, value in rows.items())])
