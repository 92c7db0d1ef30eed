"""What is wrong with the records of a config's data, as training would read them."""

import numpy as np

from ldm_jax.base import watch
from ldm_jax.data import survey
from ldm_jax.runs import codecs
from ldm_jax.runs import conditions as conditions_of
from ldm_jax.runs import data as data_lib


def check(config, records: int = 0) -> dict:
    """What `check_data` writes of `records` records, evenly spread, or of all."""
    seconds = watch.stopwatch()
    if not config.get("first_stage", codecs.IDENTITY):
        with config.unlocked():
            config.first_stage = codecs.IDENTITY  # only the size of small images depends on it
    source = data_lib.open_source(config.data)
    data_lib.training(config, source)  # refuses what cannot be held out from, as training does
    notes, config = data_lib.notes(config, source), data_lib.resolve(config, source)
    count = min(records or len(source), len(source))
    chosen = np.linspace(0, len(source) - 1, count).round().astype(int)
    conditions = conditions_of.make(config, source)
    seen = survey.survey(source, conditions, config.data.size, chosen, config.data.threads)
    return {
        "records": count,
        "replaced": seen["replaced"],
        "classes": len(source.classes),
        "box_classes": len(source.box_classes),
        "with": seen["with"],
        "found": seen["found"],
        "notes": notes,
        "seconds": seconds(),
    }


def words(summary: dict) -> list[str]:
    """A line for each field that records have, each problem, the commonest first, each note."""
    lines = [f"  {n:>9,} of {summary['records']:,} have {f}" for f, n in summary["with"].items()]
    found = sorted(summary["found"].items(), key=lambda item: -item[1]["count"])
    lines += [
        f"  {problem['count']:>9,} {kind}, e.g. {'; '.join(problem['examples'])}"
        for kind, problem in found
    ]
    return lines + summary["notes"]
