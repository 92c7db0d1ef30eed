"""The measures of a sweep's cells, and the table of all results.

A new measure of `evaluate` is added as a line of one of the two dicts.
"""

import csv
import io

from ldm_jax.reports.intervals import measure

# {key of summary.json: (its label, whether larger is better)}. The first measure that all cells
# have ranks them.
MEASURES = {
    "fid": ("FID", False),
    "fid_clean": ("FID (clean)", False),
    "fd_mobilenet": ("Fréchet distance on MobileNetV2", False),
    "class_accuracy": ("samples of the right class", True),
    "kid": ("KID", False),
    "kid_mobilenet": ("KID on MobileNetV2", False),
    "inception_score": ("Inception Score", True),
    "precision": ("precision", True),
    "recall": ("recall", True),
    "coverage": ("coverage", True),
}
FIRST_STAGE = {
    "psnr_db": ("PSNR, dB", True),
    "ssim": ("SSIM", True),
    "lpips": ("LPIPS", False),
    "rfid": ("rFID", False),
    "rfd_mobilenet": ("reconstructions' Fréchet distance on MobileNetV2", False),
    "latent_high_frequency": ("latents' power at high frequencies, share", False),
}


def variant(cell: dict) -> str:
    """The cell's name without its seed."""
    return cell["cell"].rpartition("_")[0]


def keys(cells) -> list[str]:
    """The measures of samples that all rows of all cells have, in the table's order."""
    rows = [row["measures"] for cell in cells for row in cell["rows"]]
    return [key for key in MEASURES if all(key in row for row in rows)]


def final(cell: dict) -> dict:
    """The row at the end of training, for the number of sampling steps that all points have."""
    wanted = cell["steps"], cell["curve"]
    return next(r for r in cell["rows"] if (r["step"], r["sampling_steps"]) == wanted)


def flops(cell: dict, step: int) -> float:
    return cell["flops_per_step"] * step


def numbers(cell: dict) -> int:
    """In the latents of an image."""
    return (cell["size"] // cell["f"]) ** 2 * cell["channels"]


def portable(cells) -> list[dict]:
    """The same without the paths of pictures, which mean nothing elsewhere."""
    without = lambda row: {key: row[key] for key in row if key != "samples_png"}
    return [cell | {"rows": [without(row) for row in cell["rows"]]} for cell in cells]


def table(cells) -> str:
    """All rows of all cells as CSV."""
    labels = dict.fromkeys(axis for cell in cells for axis in cell["labels"])
    own = ("cell", *labels, "seed", "parameters", "flops_per_step")
    first = [k for k in FIRST_STAGE if any(k in first_stage(c) for c in cells)]
    header = [*own, "step", "flops", "sampling_steps", "num", "images_per_second"]
    header += [name for key in keys(cells) for name in (key, f"{key}_low", f"{key}_high")]
    header += [f"first_stage_{key}" for key in first]
    out = io.StringIO()
    writer = csv.DictWriter(out, header, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for cell in cells:
        for row in cell["rows"]:
            line = cell | row | cell["labels"] | {"flops": flops(cell, row["step"])}
            for key in keys(cells):
                found = measure(row["measures"], key, row["num"])
                line |= {key: found.value, f"{key}_low": found.low, f"{key}_high": found.high}
            line |= {f"first_stage_{k}": first_stage(cell).get(k) for k in first}
            writer.writerow(line)
    return out.getvalue()


def first_stage(cell: dict) -> dict:
    """The measures of a cell's first stage; {} for pixels."""
    return (cell["first_stage"] or {"measures": {}})["measures"]
