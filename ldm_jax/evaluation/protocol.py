"""How a figure was measured, so that figures are only compared where that means something.

A protocol has two halves. `measurement` must be equal for figures to compare: features, weights of
the extractor, resize, quantiser, numbers of images, reference, settings. `subject` is what is
compared: the samples' weights, sampler, steps, guidance, seed.
"""

import math

from ldm_jax.base import config as config_lib
from ldm_jax.base import errors, values

QUANTISER = "uint8, rounded half up"
_HALF, _NAMES = values.Mapping(None), values.Several(values.Text())
STORED = values.Fields({"measurement": _HALF, "subject": _HALF, "figures": _NAMES})


def protocol(measurement: dict, subject: dict) -> dict:
    return {"measurement": {"quantiser": QUANTISER} | measurement, "subject": subject}


def stored(figures: dict, protocols: dict) -> dict:
    """Figures as a summary holds them, beside their protocol."""
    return figures | {"protocol": protocols | {"figures": list(figures)}}


def origin(source, records: int, size, interpolation: str) -> dict:
    """What images of the first `records` records of a data source are, for a protocol.

    interpolation: of their centre crops, or "none" where they are not cropped.
    """
    return {
        "fingerprint": source.fingerprint,
        "records": records,
        "size": list(size),
        "crop": "none" if interpolation == "none" else "center",
        "interpolation": interpolation,
    }


def refuse_unless_equal(ours: dict, theirs: dict, name: str):
    """Raises UsageError with the difference where two protocols do not measure the same."""
    if not theirs:
        raise errors.UsageError(f"{name} holds no protocol: it is not a summary of evaluate.")
    lines = config_lib.difference(theirs["measurement"], ours["measurement"])
    if lines:
        raise errors.UsageError(
            f"{name} was measured differently, its figures do not compare: {'; '.join(lines)}."
        )


def compare(ours: dict, theirs: dict, name: str) -> list[str]:
    """Lines: what differs in the subject, then each figure, its change, and how sure that is.

    ours, theirs: summaries of evaluate with equal measurements.
    """
    if "protocol" not in ours:
        raise errors.UsageError(f"Nothing was measured that compares with {name}: give --weights.")
    refuse_unless_equal(ours["protocol"], theirs.get("protocol", {}), name)
    lines = config_lib.difference(theirs["protocol"]["subject"], ours["protocol"]["subject"])
    common = [figure for figure in ours["protocol"]["figures"] if figure in theirs]
    if not common:
        raise errors.UsageError(f"{name} has no figure in common with these.")
    for figure in common:
        if figure.endswith(("_std", "_low", "_high")):
            continue
        old, new = theirs[figure], ours[figure]
        error = math.hypot(*(summary.get(f"{figure}_std", 0.0) for summary in (theirs, ours)))
        sure = f", {abs(new - old) / error:.1f} standard errors" if error else ""
        lines.append(f"{figure}: {old:.5g} -> {new:.5g} ({new - old:+.3g}{sure})")
    return lines
