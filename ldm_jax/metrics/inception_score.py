"""The Inception Score (Salimans et al. 2016): sharp classes, many of them; no reference at all."""

import itertools

import numpy as np

from ldm_jax.base.errors import UsageError


def inception_score(logits, splits=10, seed=2020) -> tuple[float, float]:
    """exp E_x KL(p(y | x) || p(y)): mean and deviation over `splits` parts of a shuffle. [n, k].

    torch-fidelity's shuffle and parts, so that the same logits give the same score. The score of a
    smaller part is lower: only equal n and splits compare.
    """
    if len(logits) < splits:
        raise UsageError(f"Inception Score in {splits} parts needs as many images: {len(logits)}.")
    logits = np.asarray(logits, np.float64)[np.random.RandomState(seed).permutation(len(logits))]
    logits = logits - logits.max(1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    bounds = [i * len(logits) // splits for i in range(splits + 1)]
    scores = [_score(log_p[low:high]) for low, high in itertools.pairwise(bounds)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(log_p):
    p = np.exp(log_p)
    # log of a mean that underflows belongs to a class that no p holds either
    marginal = np.log(np.maximum(p.mean(0), np.finfo(np.float64).tiny))
    return np.exp((p * (log_p - marginal)).sum(1).mean())
