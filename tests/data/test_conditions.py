"""Laws of the makers: what conditioners read follows from the record and the row's generator."""

import pickle
import types

import numpy as np
import pytest
from PIL import Image

from ldm_jax.base import errors
from ldm_jax.data import (
    captions,
    conditions,
    degradations,
    holes,
    images,
    layouts,
    pipeline,
    sources,
    transforms,
)
from ldm_jax.scenes import scenes

SCENES = scenes.Scenes(size=32, count=40, objects=2, relations=True)
TEXT = dict(vocab_size=19, pad=0, null=(2, 3))
HOLE = {"masked_image": (32, 32, 3), "mask": (32, 32, 1)}
# The first tokens of a BERT vocabulary in miniature.
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "runn", "##ing", ",", "cafe")


def rng(seed=0):
    return np.random.default_rng(seed)


def makers(shapes, source=None, options=None, vocabulary="", **conditioner):
    """The makers of these fields, for a conditioner of these attributes."""
    own, data = types.SimpleNamespace(**conditioner), {"vocabulary": vocabulary}
    return conditions.makers(conditions.Given(shapes, own, options or {}, data, source))


def text_ids(caption, length=8, source=SCENES, **changes):
    [maker] = makers({"text_ids": (length,)}, source, **(TEXT | changes))
    return maker({"caption": caption}, rng())["text_ids"].tolist()


def layout_ids(boxes, ids, record=None, length=92, vocab_size=8192, seed=0, source=None, **options):
    own = dict(vocab_size=vocab_size, pad=vocab_size - 1)
    [maker] = makers({"layout_ids": (length,)}, source, options, **own)
    given = {"boxes": np.array(boxes, np.float32).reshape(-1, 4), "box_class": np.array(ids, int)}
    return maker((record or {}) | given, rng(seed))["layout_ids"]


# Captions


def test_scenes_are_spelt_in_their_own_words():
    ids = text_ids("a red circle left of a blue square", 12)
    words = (*captions.SPECIAL, *scenes.WORDS)
    spelt = [words[i] for i in ids]
    expected = "[CLS] a red circle left of a blue square [SEP] [PAD] [PAD]"
    assert " ".join(spelt) == expected
    for record in (SCENES[i] for i in range(20)):
        assert captions.SPECIAL.index("[UNK]") not in text_ids(record["caption"], 16)


def test_wordpiece_splits_as_bert_does(tmp_path):
    """Lower case, no accents, punctuation apart, longest piece first; a word unsplit is [UNK]."""
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    changes = dict(vocabulary=str(tmp_path / "vocab.txt"), vocab_size=len(WORDS))
    assert text_ids("Unaffable, RUNNING Café dog", 11, **changes) == [
        2,
        4,
        5,
        6,
        9,
        7,
        8,
        10,
        1,
        3,
        0,
    ]


def test_long_captions_are_cut_and_keep_their_end():
    ids = text_ids("a red circle " * 10_000)
    assert len(ids) == 8 and ids[0] == 2 and ids[-1] == 3 and 0 not in ids


def test_an_empty_caption_is_the_null_condition_and_a_missing_one_is_bad():
    assert text_ids("") == text_ids("  ") == [2, 3, 0, 0, 0, 0, 0, 0]
    [maker] = makers({"text_ids": (8,)}, SCENES, **TEXT)
    with pytest.raises(images.BadRecord, match="has no caption"):
        maker({}, rng())


def test_of_several_captions_any_is_taken():
    [maker] = makers({"text_ids": (8,)}, SCENES, **TEXT)
    given, draw = {"caption": "red", "captions": ["red", "blue"]}, rng()
    made = [maker(given, draw) for _ in range(20)]
    assert {record["caption"] for record in made} == {"red", "blue"}
    assert len({tuple(record["text_ids"]) for record in made}) == 2


def test_what_looks_like_a_special_token_is_only_text():
    assert text_ids("[SEP] red")[1:3] != [3, 3] and 3 not in text_ids("[SEP] red")[:2]


@pytest.mark.parametrize("wrong", [dict(null=(101, 102)), dict(vocab_size=18), dict(pad=1)])
def test_a_vocabulary_that_does_not_fit_the_conditioner_is_refused(wrong):
    with pytest.raises(errors.UsageError, match=r"19 tokens, pad 0.*\(2, 3\)"):
        text_ids("a", **wrong)


def test_a_missing_vocabulary_says_where_to_get_it(tmp_path):
    (tmp_path / "words.txt").write_text("a\nb\n")
    cases = [("", "is empty"), (str(tmp_path / "none.txt"), "cannot be read")]
    cases += [(str(tmp_path / "words.txt"), r"lacks \[PAD\]")]
    for path, message in cases:
        with pytest.raises(errors.UsageError, match=message) as caught:
            text_ids("a", vocabulary=path, source=sources.Source())
        assert "hf:google-bert" in str(caught.value) and "\n" not in str(caught.value)


def test_the_data_decides_an_open_vocabulary():
    decided = conditions.decide(("text_ids",), SCENES, {"vocabulary": ""})
    assert decided == {"vocab_size": 19, "pad": 0, "null": (2, 3)}
    assert conditions.decide(("class",), SCENES, {}) == {"num_classes": 16}
    assert conditions.decide(("class",), sources.Source(), {}) is None


# Layouts


def test_official_tokens_by_hand():
    """8192 tokens: 90 sections, so (x, y) is round(89 y) 90 + round(89 x)."""
    tokens = layout_ids([[0.25, 0.5, 0.75, 1.0]], [17])
    # 89/4 = 22.25 -> 22; 89/2 = 44.5 -> 44 (to even); 89 * 3/4 = 66.75 -> 67; 89.
    assert tokens[:3].tolist() == [17, 44 * 90 + 22, 89 * 90 + 67]
    assert (tokens[3:90] == 8191).all()
    assert tokens[90:].tolist() == [0, 89 * 90 + 89]
    assert tokens.shape == (92,) and tokens.dtype == np.int32


def test_centres_by_hand():
    tokens = layout_ids([[0.25, 0.5, 0.75, 1.0]], [17], length=62, places="centre")
    assert tokens[:2].tolist() == [17, 67 * 90 + 44] and tokens.shape == (62,)  # 44.5, 66.75


def test_boxes_stay_in_the_whole_image_beside_the_crop():
    """A picture twice as wide as high: the middle square is x from 1/4 to 3/4."""
    given = {
        "image": np.zeros((20, 40, 3), np.uint8),
        "boxes": np.array([[0.25, 0, 0.5, 0.5], [0, 0, 0.2, 1]], np.float32),
        "box_class": np.array([1, 2]),
    }
    record = transforms.Crop(10)(given, rng())
    tokens = layout_ids(record.pop("boxes"), record.pop("box_class"), record)
    quarter, half, three = 22, 44, 67  # of 89
    assert tokens[:3].tolist() == [1, quarter, half * 90 + half]
    assert (tokens[3:90] == 8191).all(), "the box beside the crop is gone"
    assert tokens[90:].tolist() == [quarter, 89 * 90 + three]
    own = layout_ids([[0, 0, 0.5, 0.5]], [1], record, length=90, encode_crop=False)
    assert own[:3].tolist() == [1, 0, half * 90 + half]


def test_a_flip_mirrors_boxes_and_crop():
    record = {
        "image": np.zeros((4, 8, 3), np.uint8),
        "boxes": np.array([[0.25, 0, 0.5, 0.5]], np.float32),
        "box_class": np.array([1]),
    }
    cropped = transforms.Crop(4)(record, rng())
    flipped = next(
        out for s in range(20) if (out := transforms.Flip()(cropped, rng(s))) is not cropped
    )
    np.testing.assert_allclose(flipped["whole_boxes"], [[0.5, 0, 0.75, 0.5]])
    np.testing.assert_allclose(flipped["window"], [0.25, 0, 0.75, 1])
    np.testing.assert_allclose(flipped["boxes"], [[0.5, 0, 1, 0.5]])


def test_the_order_of_objects_is_random_and_their_set_is_not():
    boxes = [[0.1 * i, 0, 0.1 * i + 0.1, 1] for i in range(5)]
    drawn = [layout_ids(boxes, range(5), seed=s)[:15].reshape(5, 3) for s in range(6)]
    assert len({tuple(d[:, 0]) for d in drawn}) > 3
    for d in drawn:
        np.testing.assert_array_equal(d[d[:, 0].argsort()], drawn[0][drawn[0][:, 0].argsort()])
    np.testing.assert_array_equal(layout_ids(boxes, range(5)), layout_ids(boxes, range(5)))


def test_unsound_boxes_are_dropped_and_outer_ones_clipped():
    nan = float("nan")
    boxes = [[0.5, 0, 0.2, 1], [0.2, 0.2, 0.2, 0.9], [nan, 0, 1, 1], [1.5, 0, 2, 1]]
    tokens = layout_ids([*boxes, [-0.5, -0.5, 0.5, 1.5]], [1, 2, 3, 4, 5])
    assert tokens[:3].tolist() == [5, 0, 89 * 90 + 44] and (tokens[3:90] == 8191).all()
    assert (layout_ids(np.zeros((0, 4)), [])[:90] == 8191).all()


def test_too_many_boxes_keep_the_largest():
    boxes = [[0, 0, 0.01 * (i + 1), 1] for i in range(40)]
    kept = layout_ids(boxes, range(40))[:90:3]
    assert sorted(kept) == list(range(10, 40))


def test_boxes_of_unknown_classes_or_without_any_are_bad_records():
    box = [[0, 0, 1, 1]]
    for ids in ([-1], [8191], [], [1, 2]):
        with pytest.raises(images.BadRecord):
            layout_ids(box, ids)
    with pytest.raises(images.BadRecord, match="class 16"):
        layout_ids(box, [16], source=SCENES)
    with pytest.raises(images.BadRecord, match="has no boxes"):
        makers({"layout_ids": (92,)}, vocab_size=8192, pad=8191)[0]({}, rng())
    for wrong, message in [
        (dict(length=91), "length=91.*89"),
        (dict(places="corner"), "places='corner'.*box.*centre"),
        (dict(source=SCENES, vocab_size=16), "16 classes.*15"),
    ]:
        with pytest.raises(errors.UsageError, match=message):
            layout_ids(box, [1], **wrong)


def test_tokens_come_back_as_points():
    points = rng().random((50, 2))
    y, x = np.divmod(layouts.coordinate_tokens(points, 90), 90)
    assert np.abs(np.stack([x, y], axis=-1) / 89 - points).max() <= 0.5 / 89 + 1e-9


# Small images


def test_low_res_is_pils_bicubic_of_the_cropped_and_flipped_image():
    chain = transforms.standard(32, "random", True, makers=makers({"low_res": (8, 8, 3)}))
    image = rng().integers(0, 256, (40, 56, 3)).astype(np.uint8)
    for seed in range(4):
        record, draw = {"image": image}, rng(seed)
        for transform in chain:
            record = transform(record, draw)
        pixels = np.rint((record["image"] + 1) * 127.5).astype(np.uint8)
        small = Image.fromarray(pixels).resize((8, 8), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(record["low_res"], np.asarray(small) / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("side", [64, 256])
def test_bsr_light_degrades_a_little_more_than_bicubic_and_repeatably(side):
    image, _ = scenes.render(scenes.compose(0, 3), side)
    size = (side // 4, side // 4)
    plain = degradations.bicubic(image, size, rng()).astype(float)
    made = [degradations.bsr_light(image, size, rng(s)) for s in range(12)]
    np.testing.assert_array_equal(made[5], degradations.bsr_light(image, size, rng(5)))
    assert all(m.shape == (*size, 3) and m.dtype == np.uint8 for m in made)
    errors_ = [np.abs(m - plain).mean() for m in made]
    assert min(errors_) > 0.5 and np.median(errors_) < 15


def test_an_image_that_is_no_square_is_degraded_along_the_right_axes():
    """The official code swaps them when it crops."""
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, 32:] = 255
    for seed in range(8):
        small = degradations.bsr_light(image, (8, 16), rng(seed)).astype(int)
        assert small[:, :5].mean() < 40 and small[:, 11:].mean() > 215


def test_a_given_small_image_must_have_its_size():
    [maker] = makers({"low_res": (8, 8, 3)})
    given = rng().integers(0, 256, (8, 8, 3)).astype(np.uint8)
    np.testing.assert_allclose(
        maker({"low_res": given}, rng())["low_res"], given / 127.5 - 1, atol=1e-6
    )
    with pytest.raises(images.BadRecord, match=r"\(4, 8, 3\).*\(8, 8, 3\)"):
        maker({"low_res": given[:4]}, rng())


# Holes


def hole_maker(**options):
    [maker] = makers(HOLE, options=options)
    return maker


def test_the_hole_is_black_and_the_rest_is_the_image():
    record = {"image": SCENES[0]["image"]}
    out = hole_maker()(record, rng())
    hole = out["mask"][..., 0] == 1
    assert set(np.unique(out["mask"])) == {0.0, 1.0} and out["mask"].shape == (32, 32, 1)
    assert (out["masked_image"][hole] == -1).all()
    whole = transforms.to_float(record["image"])
    np.testing.assert_array_equal(out["masked_image"][~hole], whole[~hole])


@pytest.mark.parametrize("kind", holes.KINDS.names())
@pytest.mark.parametrize("size", [(16, 16), (64, 48)])
def test_holes_vary_in_place_and_size_within_their_bounds(kind, size):
    draw, mix = rng(), holes.Mix({kind: 1.0})
    drawn = np.stack([mix(*size, draw) for _ in range(200)])
    area = drawn.mean((1, 2))
    assert holes.AREA[0] <= area.min() and area.max() <= holes.AREA[1]
    assert area.std() > 0.05 and len({d.tobytes() for d in drawn}) > 150
    often = drawn.mean(0)
    assert often.min() > 0.02 and often.max() < 0.8, "every pixel is now in the hole, now not"


def test_the_mix_follows_its_weights():
    def area(**weights):
        mix, draw = holes.Mix(weights), rng()
        return np.mean([mix(32, 32, draw).mean() for _ in range(1_000)])

    box, half, both = area(box=1), area(half=1), area(box=3, half=1, stroke=0)
    assert half - box > 0.15
    assert both == pytest.approx(0.75 * box + 0.25 * half, abs=0.02)
    for wrong in ({"box": 0}, {"box": -1, "half": 2}):
        with pytest.raises(errors.UsageError, match="holes="):
            holes.Mix(wrong)
    with pytest.raises(errors.UsageError, match="did you mean 'stroke'"):
        holes.Mix({"strokes": 1})


def test_a_mask_of_another_size_is_refused():
    record = {"image": SCENES[0]["image"], "mask": np.ones((16, 32), bool)}
    with pytest.raises(images.BadRecord, match=r"a mask of 32x16, not 32x32"):
        hole_maker()(record, rng())
    given = hole_maker()(record | {"mask": np.eye(32) > 0}, rng())
    np.testing.assert_array_equal(given["mask"][..., 0], np.eye(32))


# Classes and maps


def test_classes_are_ids_or_names_and_never_wrap_around():
    [maker] = makers({"class": ()}, SCENES, num_classes=16)
    assert maker({"class": "blue square"}, rng())["class"] == scenes.CLASSES.index("blue square")
    for wrong in (-1, 16, "blue sqare"):
        with pytest.raises(images.BadRecord, match=r"0\.\.15|did you mean 'blue square'"):
            maker({"class": wrong}, rng())


def test_maps_of_another_size_are_refused_and_labels_out_of_range_are_found():
    [maker] = makers({"segmentation": (8, 8)}, classes=5)
    with pytest.raises(images.BadRecord, match=r"4x8.*8x8"):
        maker({"segmentation": np.zeros((8, 4), int)}, rng())
    void = np.full((8, 8), 255)
    np.testing.assert_array_equal(maker({"segmentation": void}, rng())["segmentation"], void)
    assert list(maker.findings({"segmentation": void})) == ["labels of the map out of range"]
    wrong = {"image": np.zeros((8, 8, 3), np.uint8), "segmentation": np.zeros((8, 9), np.uint8)}
    with pytest.raises(images.BadRecord, match=r"9x8.*8x8"):
        transforms.Crop(8)(wrong, rng())


# All of them in the pipeline


def everything(source):
    made = makers({"text_ids": (16,)}, source, **TEXT)
    made += makers({"layout_ids": (8,)}, source, vocab_size=512, pad=511)
    made += makers({"low_res": (8, 8, 3)}, source, {"degradation": "bsr_light"})
    return made + makers(HOLE, source) + makers({"segmentation": (32, 32)}, source, classes=17)


FIELDS = ("image", "text_ids", "layout_ids", "low_res", "masked_image", "mask", "segmentation")


def take(n, source=SCENES, **kwargs):
    chain = transforms.standard(32, "random", True, makers=everything(SCENES))
    kwargs = dict(batch_size=8, seed=5, fields=FIELDS) | kwargs
    with pipeline.train_batches(source, chain, **kwargs) as batches:
        return [next(batches) for _ in range(n)]


def test_fields_depend_on_seed_step_and_row_alone():
    whole = take(4)
    variants = [take(4, workers=1, threads=2), take(2, start_step=2, threads=1)]
    for made in variants:
        for a, b in zip(whole[-len(made) :], made):
            for field in FIELDS:
                np.testing.assert_array_equal(a[field], b[field], err_msg=field)
    halves = [take(4, host=h, hosts=2) for h in range(2)]
    for step in range(4):
        for field in FIELDS:
            joined = np.concatenate([half[step][field] for half in halves])
            np.testing.assert_array_equal(whole[step][field], joined, err_msg=field)


def test_holes_differ_between_epochs():
    rows = {}
    for batch in take(15):  # three epochs
        for picture, mask in zip(batch["text_ids"], batch["mask"]):
            rows.setdefault(picture.tobytes(), set()).add(mask.tobytes())
    assert np.mean([len(masks) > 1 for masks in rows.values()]) > 0.9


def test_evaluation_gives_the_same_fields_each_time_and_says_which_rows_are_real():
    chain = transforms.standard(32, makers=everything(SCENES))
    read = lambda: list(pipeline.eval_batches(SCENES, chain, batch_size=16, fields=FIELDS))
    for a, b in zip(read(), read()):
        assert a["mask"].shape == (16, 32, 32, 1) and a["real"].shape == (16,)
        for field in FIELDS:
            np.testing.assert_array_equal(a[field], b[field])
    assert read()[-1]["real"].sum() == 40 % 16


class Odd(sources.Source):
    """Scenes of which some lack their caption."""

    def __len__(self):
        return 40

    def name(self, i):
        return f"odd {i}"

    def __getitem__(self, i):
        record = SCENES[i]
        return {k: v for k, v in record.items() if k != "caption"} if i in (3, 7) else record


def test_records_that_a_condition_cannot_use_are_replaced_and_reported():
    bad = {int(i) for batch in take(10, Odd()) for i in batch["bad"] if i >= 0}
    assert bad == {3, 7}


def test_data_without_the_condition_says_so_before_the_first_batch():
    class Bare(Odd):
        def __getitem__(self, i):
            return {"image": SCENES[i]["image"]}

    with pytest.raises(errors.UsageError, match="has no caption") as caught:
        take(1, Bare())
    assert "\n" not in str(caught.value)


def test_makers_travel_to_worker_processes():
    record = SCENES[2]
    for maker in pickle.loads(pickle.dumps(everything(SCENES))):
        record = maker(record, rng())
    assert set(FIELDS) <= set(record)


# Conditions for drawing


def of(fields, made, **kwargs):
    return conditions.Conditions(tuple(made), tuple(fields), **kwargs)


def test_conditions_of_prompts_pictures_and_records():
    text = of(["text_ids"], makers({"text_ids": (16,)}, SCENES, **TEXT))
    ids = text.of_prompts(["a red circle", "a blue cross"])["text_ids"]
    assert ids.shape == (2, 16) and ids[0].tolist() == text_ids("a red circle", 16)
    named = of(["class"], makers({"class": ()}, SCENES, num_classes=16))
    assert named.of_prompts(["red circle", "blue cross"])["class"].tolist() == [0, 14]
    with pytest.raises(errors.UsageError, match=r"1 .*'red cirle'.*'red circle'"):
        named.of_prompts(["red circle", "red cirle"])
    hole = of(["masked_image", "mask"], [hole_maker()])
    image, mask = SCENES[0]["image"], np.eye(32) > 0
    fields = hole.of([{"image": image, "mask": mask}] * 3)
    assert fields["mask"].shape == (3, 32, 32, 1)
    with pytest.raises(errors.UsageError, match=r"0 .*4x4"):
        hole.of([{"image": image, "mask": np.ones((4, 4))}])
    framing = tuple(transforms.standard(32)[:-1])
    fields, records = of(FIELDS[1:], everything(SCENES), framing=framing).of_source(SCENES, 5)
    assert len(records) == 5 and records[2]["caption"] == SCENES[2]["caption"]
    assert {len(fields[field]) for field in FIELDS[1:]} == {5}
    with pytest.raises(errors.UsageError, match=r"40 .*41"):
        text.of_source(SCENES, 41)
    _, records = text.of_source(Odd(), 5)
    assert records[3]["caption"] == SCENES[4]["caption"], "record 3 has none"
    with pytest.raises(errors.UsageError):
        text.of([])
    with pytest.raises(errors.UsageError, match=r"0 .*caption"):
        text.of([{"image": image}])
