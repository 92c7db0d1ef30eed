"""How well images fit their captions by CLIP (Hessel et al. 2021, arXiv 2104.08718, eq. 1)."""

import numpy as np

PROMPT = "A photo depicts "  # that stands before each caption
WEIGHT = 2.5


def clip_score(images, texts) -> tuple[float, float]:
    """The mean of WEIGHT * max(cosine, 0) and its standard error. images, texts: unit [n, d]."""
    cosines = (np.asarray(images, np.float64) * np.asarray(texts, np.float64)).sum(1)
    scores = WEIGHT * cosines.clip(0.0)
    error = scores.std(ddof=1) / np.sqrt(len(scores)) if len(scores) > 1 else 0.0
    return float(scores.mean()), float(error)
