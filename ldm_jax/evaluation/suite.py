"""The figures of a set of images against a reference, all from one pass over features.

    samples = collect((*extract(pixels), mask) for pixels, mask in batches)
    figures = METRICS.get("fd").compute(samples, reference, Settings())

A figure that is an estimate comes with its uncertainty, `NAME/std`; docs/evaluation.md says of
each what that is.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from ldm_jax.base import errors
from ldm_jax.base.registry import Registry
from ldm_jax.metrics import clip_score as clip_score_lib
from ldm_jax.metrics import frechet, inception_score, kernel, manifold, resampling
from ldm_jax.metrics.frechet import Moments

METRICS = Registry("metric")
# What a metric may need, and the remedy where it is missing.
NEEDS = {
    "logits": "samples and classes: --features=inception",
    "reference": "a reference: --reference=RUN, folder or .npz",
    "features": "the reference's features, which a .npz of mu and sigma lacks: give images",
    "cmmd": "CLIP's embeddings of images: --features=clip",
    "clip_score": "CLIP's embeddings of images and captions: --features=clip_b32",
    "captions": "captions: --samples=FOLDER, drawn with --prompts or with captions beside images",
}
NEIGHBOURS = 10_000  # features of a side that neighbourhoods are made of, as in ADM's evaluation
NORMAL_95 = 1.96


@dataclasses.dataclass(frozen=True)
class Settings:
    """Part of the protocol: figures of other settings do not compare.

    kid_subsets, kid_subset_size, splits: as in torch-fidelity. bootstrap: rounds for the error of
    a Frechet distance, 0 for none.
    """

    kid_subsets: int = 100
    kid_subset_size: int = 1000
    precision_k: int = 3
    density_k: int = 5
    splits: int = 10
    bootstrap: int = 20
    seed: int = 2020


@dataclasses.dataclass(frozen=True)
class Features:
    """One pass over images. features: [n, d] float32; logits: [n, k] or None.

    texts: [n, d], the embeddings of the images' captions, where a metric needs them.
    """

    moments: Moments
    features: np.ndarray
    logits: np.ndarray | None = None
    texts: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Metric:
    """needs: keys of NEEDS; compute: see `register`."""

    needs: tuple[str, ...]
    compute: Callable


def register(name, *needs):
    """Files `(samples, reference, settings) -> {figure: number}`; needs: keys of NEEDS."""

    def decorate(compute):
        METRICS.register(name)(Metric(needs, compute))
        return compute

    return decorate


def collect(outputs, keep: int | None = None) -> Features:
    """Moments of all images, arrays of the first `keep`.

    outputs: (features [b, d], logits [b, k] or None, mask [b]), the mask 0 for rows that only fill
      up a batch.
    """
    moments, features, logits = None, [], []
    for new, scores, mask in outputs:
        rows = np.asarray(mask) > 0
        if not rows.any():
            continue
        new = np.asarray(new)[rows]
        room = len(new) if keep is None else max(0, keep - (moments.count if moments else 0))
        moments = moments.merge(Moments.of(new)) if moments else Moments.of(new)
        features.append(new[:room])
        if scores is not None:
            logits.append(np.asarray(scores)[rows][:room])
    if not moments:
        raise errors.UsageError("There are no images to take features of.")
    return Features(moments, np.concatenate(features), np.concatenate(logits) if logits else None)


def check(names, have, flag="--metrics"):
    """Raises UsageError for metrics that are unknown, or need what is not among `have`."""
    for name in names:
        for need in METRICS.get(name).needs:
            if need not in have:
                raise errors.UsageError(f"{flag}={name} needs {NEEDS[need]}.")


def warnings(names, n: int, reference_n: int | None, dimension: int, settings: Settings) -> list:
    """A line for every figure that so few images say little about."""
    lines = []
    small = min(n, reference_n or n)
    if {"fd", "fd_infinity"} & set(names) and small <= dimension:
        lines.append(
            f"warning: {small} images for {dimension} features: the covariance is singular and the "
            "Frechet distance mostly bias; compare only figures of exactly these numbers of images."
        )
    if "fd_infinity" in names and n // 10 <= dimension:
        lines.append(
            f"warning: fd_infinity extrapolates from {n // 10} images for {dimension} features; "
            f"it means something from some {20 * dimension} on."
        )
    if "kid" in names and small < settings.kid_subset_size:
        lines.append(f"warning: kid in subsets of {small}, not {settings.kid_subset_size}.")
    if "is" in names and n < 5_000:
        lines.append(f"warning: Inception Score of {n} images is far below that of 50,000.")
    return lines


@register("fd", "reference")
def fd(samples, reference, settings):
    """Frechet distance of the features (Heusel et al. 2017); of Inception's, FID."""
    value = frechet.frechet_distance(samples.moments, reference)
    if not settings.bootstrap:
        return {"fd": value}
    distance = resampling.Resampled(samples.features, reference)
    error = resampling.bootstrap(distance, settings.bootstrap, settings.seed)
    margin = NORMAL_95 * error
    return {"fd": value, "fd/std": error, "fd/low": value - margin, "fd/high": value + margin}


@register("fd_infinity", "reference")
def fd_infinity(samples, reference, settings):
    """Frechet distance, extrapolated to infinitely many samples (Chong & Forsyth 2020)."""
    distance = resampling.Resampled(samples.features, reference)
    value, error = resampling.infinity(distance, seed=settings.seed)
    return {"fd/infinity": value, "fd/infinity_std": error}


@register("kid", "reference", "features")
def kid(samples, reference, settings):
    """Kernel distance, KID on Inception's features (Binkowski et al. 2018)."""
    draws = settings.kid_subsets, settings.kid_subset_size, settings.seed
    value, std = kernel.kernel_distance(samples.features, reference.features, *draws)
    return {"kid": value, "kid/std": std}


@register("cmmd", "cmmd", "reference", "features")
def cmmd(samples, reference, settings):
    """Maximum mean discrepancy of CLIP's embeddings (Jayasumana et al. 2024)."""
    value, error = kernel.cmmd(samples.features, reference.features)
    return {"cmmd": value, "cmmd/std": error}


@register("clip_score", "clip_score", "captions")
def clip_score(samples, reference, settings):
    """CLIPScore, how well images fit their captions (Hessel et al. 2021)."""
    value, error = clip_score_lib.clip_score(samples.features, samples.texts)
    return {"clip_score": value, "clip_score/std": error}


@register("prc", "reference", "features")
def prc(samples, reference, settings):
    """Precision and recall (Kynkaanniemi et al. 2019)."""
    fake, real = samples.features[:NEIGHBOURS], reference.features[:NEIGHBOURS]
    precision, recall = manifold.precision_recall(fake, real, settings.precision_k)
    return {
        "precision": precision,
        "precision/std": _binomial(precision, len(fake)),
        "recall": recall,
        "recall/std": _binomial(recall, len(real)),
    }


@register("dc", "reference", "features")
def dc(samples, reference, settings):
    """Density and coverage (Naeem et al. 2020)."""
    fake, real = samples.features[:NEIGHBOURS], reference.features[:NEIGHBOURS]
    density, coverage = manifold.density_coverage(fake, real, settings.density_k)
    return {
        "density": density,
        "coverage": coverage,
        "coverage/std": _binomial(coverage, len(real)),
    }


@register("is", "logits")
def inception(samples, reference, settings):
    """Inception score (Salimans et al. 2016); wants features that have logits."""
    value, std = inception_score.inception_score(samples.logits, settings.splits, settings.seed)
    return {"inception_score": value, "inception_score/std": std}


def _binomial(share, n):
    """Standard error of a share of n. Neighbours are shared, so it is a little too small."""
    return float(np.sqrt(share * (1.0 - share) / n))
