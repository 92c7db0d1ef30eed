"""Laws of the likeness of samples with the pictures that their conditions were made of."""

import numpy as np

from ldm_jax.evaluation import likeness
from ldm_jax.scenes import scenes


def records(size=32, count=8):
    source, random = scenes.Scenes(size=size, count=count, seed=3), np.random.default_rng(0)
    for i in range(count):
        image = source[i]["image"]
        low_res = image.reshape(size // 4, 4, size // 4, 4, 3).mean((1, 3)) / 127.5 - 1
        mask = np.zeros((size, size, 1), np.float32)
        y, x = random.integers(0, size // 2, 2)
        mask[y : y + size // 2, x : x + size // 2] = 1
        yield {"image": image, "low_res": low_res, "mask": mask}


def test_a_true_picture_is_as_near_as_can_be_and_its_rivals_are_not():
    asked = list(records())
    true = np.stack([record["image"] for record in asked])
    enlarged = likeness.superres_scores(true, asked)
    assert (enlarged["psnr_db"] > 99.9).all() and (enlarged["bicubic_psnr_db"] < 40).all()
    holes = likeness.inpaint_scores(true, asked)
    assert (holes["hole_psnr_db"] > 99.9).all() and (holes["flat_psnr_db"] < 60).all()
    assert (likeness.edge_scores(true, asked)["edge_f1"] == 1).all()


def test_only_what_is_asked_for_counts():
    asked = list(records())
    true = np.stack([record["image"] for record in asked])
    hole = np.stack([record["mask"] for record in asked]) > 0
    spoilt = np.where(hole, true, 255 - true)
    assert (likeness.inpaint_scores(spoilt, asked)["hole_psnr_db"] > 99.9).all()
    inverted = likeness.edge_scores(255 - true, asked)["edge_f1"]
    assert (inverted == 1).all(), "edges are edges in other colours"
    assert (likeness.edge_scores(np.full_like(true, 128), asked)["edge_f1"] == 0).all()
