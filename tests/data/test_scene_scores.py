"""Laws of the scores: rendered scenes reach nearly 1, other scenes' pictures about chance."""

import itertools

import numpy as np
import pytest

from ldm_jax.data import conditions, sources
from ldm_jax.scenes import scenes
from ldm_jax.scenes import scores as scene_scores

COUNT = 96
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def draw(size, objects, **kwargs):
    """Records, pictures, and the pictures of other records in their place."""
    kwargs = {"relations": objects > 1} | kwargs
    source = scenes.Scenes(size=size, count=COUNT, seed=3, objects=objects, **kwargs)
    records = [source[i] for i in range(COUNT)]
    images = np.stack([record["image"] for record in records])
    return records, images, np.roll(images, 7, axis=0)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("objects", [1, 2, 3])
def test_captions_are_obeyed_by_their_own_pictures(size, objects):
    records, images, others = draw(size, objects)
    own, strange = (scene_scores.caption_scores(x, records) for x in (images, others))
    assert own["caption_accuracy"].mean() >= 0.98 and strange["objects_accuracy"].mean() <= 0.1
    assert (own["colours_accuracy"] >= own["caption_accuracy"]).all()
    assert strange["colours_accuracy"].mean() <= {1: 0.4, 2: 0.2, 3: 0.1}[objects]


def test_many_objects_of_one_kind_are_put_in_order_without_trying_every_order():
    thing = lambda k: scene_scores.scene_checker.Object(0, (k, 0, k + 1, 1), None)
    found, ids = [thing(k) for k in (4, 0, 8, 2, 6, 1, 7, 3, 5)], [0] * 9
    obeys = lambda *between: scene_scores._obeys(found, ids, between, lambda i: i)
    assert obeys(*["and"] * 8) == obeys(*["left of"] * 8) == (True, True)
    assert obeys("above", *["left of"] * 7) == (True, False)


@pytest.mark.parametrize("objects", [2, 3])
def test_the_opposite_of_the_last_relation_is_not_obeyed(objects):
    records, images, _ = draw(32, objects)
    turn = lambda word: OPPOSITE.get(word, word)
    captions = [record["caption"] for record in records]
    lasts = [scene_scores.parse(c)[1][-1] for c in captions]
    turned = [turn(r).join(c.rsplit(r, 1)) for c, r in zip(captions, lasts)]
    seen = scene_scores.caption_scores(images, [{"caption": c} for c in turned])
    # Of objects of the same class any may be the one that is meant.
    same = [len(set(scene_scores.parse(c)[0])) < objects for c in turned]
    assert seen["objects_accuracy"].mean() >= 0.98
    assert not seen["caption_accuracy"][~np.array(same)].any()


@pytest.mark.parametrize("size, least", [(32, 0.8), (64, 0.88)])
@pytest.mark.parametrize("objects", [1, 2, 4])
def test_boxes_and_maps_agree_with_their_own_pictures(size, least, objects):
    records, images, others = draw(size, objects)
    assert scene_scores.layout_scores(images, records)["box_iou"].mean() >= least
    assert scene_scores.map_scores(images, records)["map_agreement"].mean() >= least
    assert scene_scores.layout_scores(others, records)["box_iou"].mean() <= 0.1
    assert scene_scores.map_scores(others, records)["map_agreement"].mean() <= 0.1


def test_a_moved_box_overlaps_as_much_as_geometry_says():
    assert scene_scores.iou((0, 0, 0.5, 0.5), (0.25, 0, 0.75, 0.5)) == pytest.approx(1 / 3)
    assert scene_scores.iou((0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5)) == 0


def test_pictures_of_nothing_score_nothing():
    records, images, _ = draw(32, 2)
    grey = np.full_like(images, 128)
    for field in ("text_ids", "layout_ids", "segmentation"):
        assert not any(v.any() for v in scene_scores.SCORES[field](grey, records).values())


def test_captions_are_read_as_they_are_written():
    classes, between = scene_scores.parse("a red circle left of a blue square and a red cross")
    assert [scenes.CLASSES[i] for i in classes] == ["red circle", "blue square", "red cross"]
    assert between == ("left of", "and")
    with pytest.raises(ValueError, match="no caption"):
        scene_scores.parse("a red dog")


def test_unseen_combinations_are_never_seen_and_all_words_are():
    pairs = {}
    for part in ("seen", "unseen", ""):
        source = scenes.Scenes(size=8, count=1_600, objects=2, relations=True, combinations=part)
        scenes_ = (scenes.compose(0, i, 2, part) for i in range(len(source)))
        pairs[part] = {tuple(thing.class_id for thing in scene.things) for scene in scenes_}
        words = {w for i in range(0, 1_600, 9) for w in source[i]["caption"].split()}
        assert words <= set(scenes.WORDS) and words >= set(scenes.COLOURS) | set(scenes.SHAPES)
    assert not pairs["seen"] & pairs["unseen"]
    assert all(scenes.is_unseen(*pair) for pair in pairs["unseen"])
    assert pairs["seen"] | pairs["unseen"] >= pairs[""]
    unseen = np.array(sorted(pairs["unseen"]))
    assert set(unseen[:, 0]) == set(range(16)) and 16 <= len(unseen) <= 32


def test_old_scenes_are_what_they_were():
    """Relations and combinations are new arguments; a run on scenes without them goes on."""
    plain = scenes.Scenes(size=8, count=9, objects=2)
    assert plain.fingerprint == sources.digest("scenes", "3", "8 9 0 2")
    assert plain[0]["caption"].count(" and ") == 1
    related = scenes.Scenes(size=8, count=9, objects=2, relations=True)
    np.testing.assert_array_equal(plain[5]["image"], related[5]["image"])
    assert plain.fingerprint != related.fingerprint


@pytest.mark.parametrize("field", scene_scores.SCORES)
def test_every_task_scores_the_right_pictures_above_others(field):
    shapes = {
        "low_res": {"low_res": (8, 8, 3)},
        "masked_image": {"masked_image": (32, 32, 3), "mask": (32, 32, 1)},
    }
    makers = conditions.makers(conditions.Given(shapes.get(field, {})))
    records, images, others = draw(32, 1 if field == "class" else 2)
    for i, maker in itertools.product(range(COUNT), makers):
        records[i] = maker(records[i], np.random.default_rng(i))
    right, wrong = (scene_scores.SCORES[field](x, records) for x in (images, others))
    for name, values in right.items():
        assert values.shape == (COUNT,)
        known = name in ("flat_psnr_db", "bicubic_psnr_db")  # of the record, not of the picture
        assert known or values.mean() > wrong[name].mean() + 0.5


def test_outside_its_hole_a_picture_is_not_looked_at():
    shapes = {"masked_image": (32, 32, 3), "mask": (32, 32, 1)}
    [maker] = conditions.makers(conditions.Given(shapes))
    records, images, others = draw(32, 2)
    records = [maker(record, np.random.default_rng(i)) for i, record in enumerate(records)]
    hole = np.stack([record["mask"] for record in records]) > 0
    score = scene_scores.SCORES["masked_image"]
    whole, mixed = score(images, records), score(np.where(hole, images, others), records)
    for name in whole:
        np.testing.assert_array_equal(whole[name], mixed[name])


def test_classes_of_scenes_are_nearly_equally_frequent_and_those_of_one_scene_are_not():
    _, images, _ = draw(32, 2)
    assert scene_scores.marginal_distance(images) < 0.25
    assert scene_scores.marginal_distance(np.repeat(images[:1], 8, axis=0)) > 0.8
    assert scene_scores.marginal_distance(np.full_like(images[:4], 128)) == 1
