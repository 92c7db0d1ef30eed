"""Laws of the sources: a data set reads the same from every container; errors say what to do."""

import csv
import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from ldm_jax.base import errors
from ldm_jax.data import images, records, sources
from ldm_jax.scenes import scenes  # noqa: F401  (registers itself)

CLASSES = ("cat", "dog")


def picture(i, size=(12, 9)):
    return np.random.default_rng(i).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)


@pytest.fixture
def root(tmp_path):
    """train/{cat,dog}/*.png and val/...: 8 images, with a hidden file and a text beside."""
    root = tmp_path / "set"
    for i in range(8):
        file = (
            root / ("val" if i > 5 else "train") / CLASSES[i % 2] / f"{i}.{'PNG' if i else 'png'}"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(i)).save(file, "png")
    (root / "train/cat/.hidden.png").write_bytes(b"")
    (root / "notes.txt").write_text("not an image")
    return root


def write_metadata(root, **extra):
    files = sorted(p.relative_to(root).as_posix() for p in root.rglob("[0-9]*.*") if p.is_file())
    rows = [
        {
            "file": file,
            "label": file.split("/")[1],
            "split": file.split("/")[0],
            "caption": f"picture {file}",
            "objects": [{"category": "nose", "bbox_xywh_norm": [0.25, 0.5, 0.5, 0.25]}],
            **extra,
        }
        for file in files
    ]
    (root / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def make_tar(root, out, mode="w"):
    out.parent.mkdir(exist_ok=True)
    with tarfile.open(out, mode) as archive:
        archive.add(root, arcname=".", filter=lambda m: None if "jsonl" in m.name else m)
    if (root / "metadata.jsonl").exists():
        (out.parent / "metadata.jsonl").write_bytes((root / "metadata.jsonl").read_bytes())
    return out


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.mark.parametrize("metadata", [False, True])
def test_folder_tar_and_arrayrecord_read_the_same(root, tmp_path, metadata):
    if metadata:
        write_metadata(root)
    folder = sources.open_source("folder", path=str(root))
    archive = make_tar(root, tmp_path / "tars" / "set.tar")
    out = tmp_path / "set.array_record"
    given = [folder[i] | {"name": folder.name(i)} for i in range(8)]
    records.write_arrayrecord(str(out), given, classes=folder.classes)
    tars = [sources.open_source("tar", path=str(p)) for p in (archive, archive.parent)]
    packed = sources.open_source("arrayrecord", path=str(out))
    assert folder.classes == packed.classes == CLASSES
    for other in (*tars, packed, *(pickle.loads(pickle.dumps(s)) for s in (*tars, packed))):
        assert len(other) == len(folder) == 8
        for i in range(8):
            assert other.name(i) == folder.name(i)
            assert_same(other[i], folder[i])
    number = int(folder.name(5).split("/")[-1].split(".")[0])
    np.testing.assert_array_equal(folder[5]["image"], picture(number))
    if metadata:
        np.testing.assert_allclose(folder[0]["boxes"], [[0.25, 0.5, 0.75, 0.75]])
        assert folder.box_classes == ("nose",) and folder[0]["box_class"].tolist() == [0]
        assert folder[0]["caption"] == "picture train/cat/0.png"


def test_arrayrecord_keeps_segmentation_and_encoded_bytes(tmp_path):
    wide = np.arange(108, dtype=np.int32).reshape(9, 12) * 100
    data = images.encode(picture(1), "jpeg")
    given = [
        {"image": data, "segmentation": wide},
        {"image": data, "segmentation": wide[:, :2] % 9},
    ]
    records.write_arrayrecord(str(tmp_path / "a.array_record"), given)
    source = sources.open_source("arrayrecord", path=str(tmp_path))
    np.testing.assert_array_equal(source[0]["segmentation"], wide)
    np.testing.assert_array_equal(source[1]["segmentation"], wide[:, :2] % 9)
    np.testing.assert_array_equal(source[0]["image"], images.decode(data, "x"))


BESIDE = {"0.txt": "A red dog.\n", "0.json": '{"caption": "A red dog."}', "0.cls": "3"}
BESIDE |= {"2.json": '{"text": "of json", "boxes": "else", "width": 9}', "2.cls": "0"}
BESIDE |= {"4.json": '{"captions": ["one", "two"]}', "4.cls": "1", "x.txt": "of no image"}


@pytest.fixture
def beside(tmp_path):
    """cat/{0,2,4}.png with captions and classes beside them."""
    root = tmp_path / "beside" / "cat"
    root.mkdir(parents=True)
    for i in (0, 2, 4):
        Image.fromarray(picture(i)).save(root / f"{i}.png")
    for name, text in BESIDE.items():
        (root / name).write_text(text)
    return root.parent


def test_what_lies_beside_images_reads_the_same_from_folder_and_tar(beside, tmp_path, caplog):
    folder = sources.open_source("folder", path=str(beside))
    archive = make_tar(beside, tmp_path / "tars" / "set.tar")
    tars = sources.open_source("tar", path=str(archive))
    for source in (folder, tars, pickle.loads(pickle.dumps(tars))):
        assert [source[i]["caption"] for i in range(3)] == ["A red dog.", "of json", "one"]
        assert source[2]["captions"] == ["one", "two"]
        assert [int(source[i]["class"]) for i in range(3)] == [3, 0, 1]
    assert not caplog.text, "captions that agree are no news"


def test_captions_that_differ_are_refused_unless_the_place_is_chosen(beside):
    opened = lambda field="": sources.open_source("folder", path=str(beside), caption_field=field)
    seen = {opened().fingerprint}
    (beside / "cat/0.txt").write_text("other")
    words = r"cat/0.png: .txt says 'other', .json 'A red dog.': remove.*caption_field=.txt"
    with pytest.raises(errors.UsageError, match=words):
        opened()
    assert opened(".txt")[0]["caption"] == "other"
    assert [opened("caption")[i]["caption"] for i in (0,)] == ["A red dog."]
    seen |= {opened(".txt").fingerprint, opened("caption").fingerprint}
    rows = [{"file": f"cat/{i}.png", "caption": f"row {i}", "label": 1} for i in (0, 2)]
    (beside / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(errors.UsageError, match=r"the metadata says 'row 0', .txt 'other'"):
        opened()
    chosen = opened("caption")
    assert [chosen[i]["caption"] for i in range(2)] == ["row 0", "row 2"]
    assert len(chosen) == 2 and chosen[0]["class"] == 1
    seen.add(chosen.fingerprint)
    assert len(seen) == 4, "captions are data"


def test_a_table_reads_as_the_same_lines_of_json(root):
    files = ["train/cat/0.png", "val/cat/6.PNG", "train/dog/1.PNG"]
    texts, labels = ['a "red", cat', "", "two\nlines"], [2, 0, 1]
    rows = [
        {"file_name": file, "caption": text, "label": label}
        for file, text, label in zip(files, texts, labels)
    ]
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = sources.open_source("folder", path=str(root))
    (root / "metadata.jsonl").unlink()
    with open(root / "metadata.csv", "w", newline="", encoding="utf-8-sig") as file:
        head = ("file_name", "text", "label", "split")
        csv.writer(file).writerows([head, *zip(files, texts, labels, ("", "", ""))])
    table = sources.open_source("folder", path=str(root))
    assert len(table) == len(lines) == 3
    for i in range(3):
        assert_same(table[i], lines[i])


def test_a_caption_may_have_any_name(root):
    rows = [{"file": "train/cat/0.png", "caption": "x", "prompt": ["a", "b"]}]
    (root / "metadata.jsonl").write_text(json.dumps(rows[0]) + "\n")
    opened = lambda key: sources.open_source("folder", path=str(root), caption_field=key)
    assert opened("")[0]["caption"] == "x" and opened("prompt")[0]["captions"] == ["a", "b"]
    with pytest.raises(errors.UsageError, match="caption_field='prmpt'"):
        opened("prmpt")


def test_archives_may_repeat_names(beside, tmp_path):
    for number in range(2):
        (beside / "cat/0.txt").write_text(f"of {number}")
        (beside / "cat/0.json").unlink(missing_ok=True)
        make_tar(beside, tmp_path / "tars" / f"{number}.tar")
    source = sources.open_source("tar", path=str(tmp_path / "tars"))
    assert len(source) == 6 and source.name(0) == "cat/0.png in 0.tar"
    assert [source[i]["caption"] for i in range(2)] == ["of 0", "of 1"]


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("cat/0.txt", b"\xff\xfe\x00", "0.png: the .txt beside it cannot be read"),
        ("cat/0.json", b"[1]", "0.png: the .json beside it is no JSON object"),
        ("cat/0.json", b'{"caption": 3}', "0.png: the .json beside it: caption=3"),
        ("cat/0.cls", b"99999999999", "the .cls beside it: label"),
        ("metadata.csv", b"name,text\n", "has no column file_name"),
        ("metadata.csv", b"", "has no column file_name"),
        ("metadata.csv", b"file_name,text\ncat/0.png\n", "metadata.csv:2: has not 2 cells"),
        ("metadata.csv", b"file_name,text\ncat/0.png,a,b\n", "metadata.csv:2: has not 2 cells"),
        ("metadata.csv", b'file_name,text\ncat/0.png,"a\n', "metadata.csv:.*mend this line"),
        ("metadata.csv", b"file_name,text\ncat/9.png,a\n", "cat/9.png"),
        ("metadata.csv", b"file_name,text\n\xff,a\n", "metadata.csv cannot be read"),
        ("metadata.csv", b"file_name,boxes\ncat/0.png,9\n", "metadata.csv:2: boxes=9"),
    ],
)
def test_rubbish_beside_images_is_one_line(beside, file, content, message):
    (beside / file).write_bytes(content)
    with pytest.raises(errors.UsageError, match=message) as caught:
        sources.open_source("folder", path=str(beside))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("metadata", [False, True])
def test_splits_part_the_records_and_share_class_ids(root, metadata):
    if metadata:
        write_metadata(root)
    train, val = (sources.open_source("folder", path=str(root), split=s) for s in ("train", "val"))
    assert (len(train), len(val)) == (6, 2)
    assert train.classes == val.classes == CLASSES
    assert [int(val[i]["class"]) for i in range(2)] == [0, 1]
    with pytest.raises(errors.UsageError, match=r"train, val.*'train'"):
        sources.open_source("folder", path=str(root), split="trian")


def test_flat_folders_have_no_classes(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    source = sources.open_source("folder", path=str(tmp_path))
    assert source.classes == () and "class" not in source[0]


def test_fingerprints_follow_the_data_and_not_the_place(root, tmp_path):
    def fingerprint(**kwargs):
        return sources.open_source("folder", path=str(root), **kwargs).fingerprint

    before = fingerprint()
    seen = {before, fingerprint(split="val")}
    root = root.rename(tmp_path / "moved")
    assert fingerprint() == before
    Image.fromarray(picture(99)).save(root / "train/cat/99.png")
    seen.add(fingerprint())
    write_metadata(root)
    seen.add(fingerprint())
    write_metadata(root, caption="other")
    seen.add(fingerprint())
    assert len(seen) == 5


def test_transparency_palettes_greys_and_orientation_become_plain_rgb():
    def decoded(image, **options):
        buffer = io.BytesIO()
        image.save(buffer, "png", **options)
        return images.decode(buffer.getvalue(), "x")

    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert (decoded(clear) == 255).all()
    grey = Image.fromarray(np.full((2, 2), 40000, np.uint16))
    assert (decoded(grey) == 40000 >> 8).all()
    palette = Image.fromarray(picture(0)).quantize(8)
    np.testing.assert_array_equal(decoded(palette), np.asarray(palette.convert("RGB")))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decoded(Image.fromarray(picture(0)), exif=exif)
    np.testing.assert_array_equal(turned, np.rot90(picture(0), -1))


def test_bad_records_are_named(root, monkeypatch):
    file = root / "train/cat/0.png"
    whole = file.read_bytes()
    source = sources.open_source("folder", path=str(root))
    with monkeypatch.context() as patch, pytest.raises(images.BadRecord, match=r"0.png.*12x9"):
        patch.setattr(images, "MAX_PIXELS", 100)
        source[0]
    for broken in (b"", b"rubbish", whole[: len(whole) // 2]):
        file.write_bytes(broken)
        with pytest.raises(images.BadRecord, match=r"train/cat/0.png"):
            source[0]
    file.unlink()
    with pytest.raises(images.BadRecord, match=r"train/cat/0.png"):
        source[0]


def test_holdout_parts_the_records_the_same_way_each_time():
    source = sources.open_source("scenes", size=8, count=50)
    train = source.holdout(0.1, train=True)
    held = source.holdout(0.1, train=False)
    names = [v.name(i) for v in (train, held) for i in range(len(v))]
    assert (len(train), len(held)) == (45, 5)
    assert sorted(names) == sorted(source.name(i) for i in range(50))
    assert train.fingerprint != held.fingerprint and held.classes == source.classes
    assert held.name(0) == source.holdout(0.1, train=False).name(0)
    assert len(source.holdout(1e-6, train=False)) == 1
    with pytest.raises(errors.UsageError, match=r"holdout=1.5 of 50"):
        source.holdout(1.5, train=True)


def test_wrong_input_is_one_line_with_a_remedy(root, tmp_path):
    (tmp_path / "empty").mkdir()
    packed = make_tar(root, tmp_path / "z" / "set.tar", "w:gz")
    cases = [
        ("foldr", {}, "did you mean 'folder'"),
        ("folder", {"pth": "x"}, "did you mean 'path'"),
        ("folder", {}, "path"),
        ("folder", {"path": str(tmp_path / "nothing")}, "nothing"),
        ("folder", {"path": ""}, "give --config.data.path=PATH"),
        ("folder", {"path": str(tmp_path / "empty")}, "empty"),
        ("folder", {"path": str(root), "label_field": "kind"}, "kind"),
        ("tar", {"path": str(tmp_path / "empty")}, "empty.*tar"),
        ("tar", {"path": str(packed)}, "gzip"),
        ("arrayrecord", {"path": str(tmp_path / "empty")}, "empty.*array_record"),
        *((name, {"path": "gs://b/set"}, "copy it here") for name in ("parquet", "arrayrecord")),
    ]
    for name, kwargs, message in cases:
        with pytest.raises(errors.UsageError, match=message) as caught:
            sources.open_source(name, **kwargs)
        assert "\n" not in str(caught.value)


DATA = dict(source="scenes", path="", split="", label_field="label", count=9, relations=False)


@pytest.mark.parametrize(
    "source, key, value, told",
    [
        ("scenes", "split", "nonsense", True),
        ("scenes", "path", "photos", True),
        ("folder", "count", 9, True),
        ("tar", "relations", True, True),
        ("scenes", "count", 9, False),
        ("folder", "split", "train", False),
        # What the recipe of another source set, switched off; and what is no source's key.
        ("tar", "relations", False, False),
        ("scenes", "label_field", "label", False),
        ("scenes", "flip", True, False),
    ],
)
def test_a_key_that_means_nothing_to_the_source_is_told(source, key, value, told):
    idle = sources.idle(DATA | {"source": source, key: value})
    assert (key in idle) == told
    assert not told or f"data source {source!r}" in idle[key]


def test_metadata_that_does_not_fit_is_a_usage_error(root):
    (root / "metadata.jsonl").write_text('{"file": "gone.png"}\n')
    with pytest.raises(errors.UsageError, match=r"gone.png"):
        sources.open_source("folder", path=str(root))
    (root / "metadata.jsonl").write_text('{"file": "gone.png"\n')
    with pytest.raises(errors.UsageError, match=r"metadata.jsonl:1"):
        sources.open_source("folder", path=str(root))


def test_the_size_of_pictures_may_be_set_for_every_source():
    for name in sources.SOURCES.names():
        assert not sources.idle({"source": name, "size": 48})
