"""What a run's files tell of its training, read once."""

import pathlib
import re

from ldm_jax.base import disk, record
from ldm_jax.engine import goodput, log, meter, rollback
from ldm_jax.reports import intervals

HELD_OUT = "val/"  # how figures of held-out records begin in metrics.jsonl
BOUNDS = ("_std", "_low", "_high")


class History:
    """A run. Raises UsageError for a folder that is none, or whose files are damaged.

    Attributes:
      name: the path as the user knows it.
      config: the whole config.
      train, held_out: {name: ([step, ...], [intervals.Value, ...])}.
      timing: the same of speeds.
    """

    def __init__(self, run: str):
        self.record = record.Record(run)
        self.path, self.name = self.record.path, self.record.shown
        self.config = self.record.config
        lines = disk.read_jsonl(self.path / "metrics.jsonl", log.LINE)
        held_out = [_part(line, True) for line in lines]
        self.train = _series([_part(line, False) for line in lines])
        self.held_out = _series([line for line in held_out if len(line) > 1])
        self.timing = _series(disk.read_jsonl(self.path / "timing.jsonl", log.LINE))

    @property
    def step(self) -> int:
        """The last step that is logged."""
        steps = [steps[-1] for steps, _ in (self.train | self.held_out).values()]
        return max(steps, default=0)

    @property
    def goodput(self) -> str:
        """Where its time went, in words; "" where that is not recorded."""
        found = goodput.report(self.path)
        return goodput.words(found) if found else ""

    @property
    def parameters(self) -> str:
        """How many parameters are trained, in words; "" where that is not recorded."""
        file = self.path / "parameters.txt"
        text = disk.read_text(file) if disk.there(file) else ""
        found = re.search(r"^Total: ([\d,]+)", text, re.MULTILINE)
        return f"{found[1]} parameters." if found else ""

    @property
    def evaluation(self) -> dict[str, intervals.Value]:
        """What `evaluate` measured of the run, where it did."""
        file = self.path / "evaluation" / "summary.json"
        return measured(disk.read_json(file)) if disk.there(file) else {}

    @property
    def alarms(self) -> list[str]:
        """What went wrong, a sentence each."""
        said = [
            f"Step {line['from']}: rolled back to step {line['step']} ({line['reason']})."
            for line in disk.read_jsonl(self.path / "rollbacks.jsonl", rollback.LINE)
        ]
        for file in sorted(self.path.glob("bad_records_*.jsonl")):
            names = [line["name"] for line in disk.read_jsonl(file, meter.BAD_RECORD)]
            said.append(
                f"{len(names)} records were replaced, the last {names[-1]}." if names else ""
            )
        for name, (steps, values) in self.train.items():
            if bad := [s for s, v in zip(steps, values) if v.value - v.value != 0]:
                said.append(f"{name} is not finite at step {bad[0]}.")
        return [sentence for sentence in said if sentence]

    @property
    def origin(self) -> list[str]:
        """What it was started from, and what it uses besides, a sentence each."""
        file, said = self.path / "init_from.json", []
        if disk.there(file):
            said.append(f"Its weights at step 0: {_said(disk.read_json(file))}")
        if self.config.get("first_stage"):
            said.append(f"Its first stage is {self.config.first_stage}.")
        frozen = {name: digest for name, digest in self.record.frozen.items() if digest}
        said += [f"Frozen: {_said(frozen)}"] if frozen else []
        return said or ["It was started from random weights."]

    def pictures(self) -> dict[str, list[pathlib.Path]]:
        """{name: its grids in the order of steps}."""
        found = {}
        for file in sorted((self.path / "images").glob("*_[0-9]*.png")):
            found.setdefault(file.stem.rpartition("_")[0], []).append(file)
        return found


def measured(summary: dict) -> dict[str, intervals.Value]:
    """The numbers of a summary with their intervals."""
    numbers = {k: v for k, v in summary.items() if _is_number(v)}
    own = [key for key in numbers if not _is_bound(key, numbers)]
    return {key: intervals.measure(numbers, key, summary.get("num", 0)) for key in own}


def _part(line: dict, held_out: bool) -> dict:
    """Step, and the figures of held-out records or the others."""
    own = {k: v for k, v in line.items() if k.startswith(HELD_OUT) == held_out and k != "step"}
    return {"step": line["step"]} | {k.removeprefix(HELD_OUT): v for k, v in own.items()}


def _series(lines: list[dict]) -> dict:
    found = {}
    for line in lines:
        for key, value in measured({k: v for k, v in line.items() if k != "step"}).items():
            steps, values = found.setdefault(key, ([], []))
            steps.append(line["step"])
            values.append(value)
    return found


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_bound(key: str, known) -> bool:
    return any(key.endswith(end) and key.removesuffix(end) in known for end in BOUNDS)


def _said(values: dict) -> str:
    plain = {k: v for k, v in values.items() if isinstance(v, (str, int, float))}
    return ", ".join(f"{name} {value}" for name, value in plain.items()) + "."
