"""Says what is wrong with a data set before a job is launched, with counts and examples.

    python -m ldm_jax.check_data --config=configs/NAME.py[:variant] [--records=N --out=DIR]
        [--config.data.path=... --config.data.vocabulary=...]

Every record (or N of them, evenly spread) is read, cropped and made into what the recipe's
conditioners read. Unreadable records and those that a condition can do nothing with are replaced in
training; the rest is said and does no harm. Exit code 1 if more than config.data.max_bad_fraction
would be replaced. --out writes summary.json.
"""

import pathlib

from absl import flags

from ldm_jax import cli
from ldm_jax.base import config as config_lib
from ldm_jax.base import disk, errors, watch


def define(values):
    flags.DEFINE_string("config", None, "config file, path.py[:variant]", flag_values=values)
    flags.DEFINE_integer(
        "records", 0, "how many, evenly spread; 0 for all", lower_bound=0, flag_values=values
    )
    flags.DEFINE_string("out", "", "folder for summary.json", flag_values=values)


def main(args, overrides):
    cli.require(args, "config")
    if args.out:
        cli.check_writable("--out", args.out)
    import json

    import numpy as np

    from ldm_jax.build import objects as build
    from ldm_jax.data import survey as survey_lib

    seconds = watch.stopwatch()
    config = config_lib.load(args.config, overrides)
    if config.stage == "diffuse" and not config.first_stage:
        with config.unlocked():
            config.first_stage = build.IDENTITY  # only the size of small images depends on it
    data = config.data
    build.sources.check_flags(data, overrides)
    source = build.open_source(data)
    config = build.resolve(config, source)
    count = min(args.records or len(source), len(source))
    chosen = np.linspace(0, len(source) - 1, count).round().astype(int)
    conditions = build.make_conditions(config, source)
    seen = survey_lib.survey(source, conditions, data.size, chosen, data.threads)
    summary = {
        "records": seen.records,
        "replaced": seen.refused,
        "classes": len(source.classes),
        "box_classes": len(source.box_classes),
        "with": dict(seen.fields),
        "found": {kind: {"count": n, "examples": e} for kind, (n, e) in seen.found.items()},
        "seconds": seconds(),
    }
    for field, n in seen.fields.items():
        print(f"  {n:>9,} of {seen.records:,} have {field}")
    for kind, (n, examples) in sorted(seen.found.items(), key=lambda item: -item[1][0]):
        print(f"  {n:>9,} {kind}, e.g. {'; '.join(examples)}")
    if args.out:
        path = pathlib.Path(args.out) / "summary.json"
        disk.write_text(path, json.dumps(summary, indent=2) + "\n")
        print(f"summary: {path}")
    if seen.refused > data.max_bad_fraction * seen.records:
        raise errors.RunError(
            f"{seen.refused} of {seen.records} records cannot be used, more than "
            f"config.data.max_bad_fraction={data.max_bad_fraction}: mend them, leave them out, or "
            "raise it."
        )
    print(f"{seen.records:,} records read, {seen.refused} would be replaced.", flush=True)


if __name__ == "__main__":
    cli.start(__doc__, define, main)
