"""Annotations in the public data sets' own forms become records."""

import json

import numpy as np
import pytest
from PIL import Image

from ldm_jax import cli, prepare_data
from ldm_jax.data import sources


def prepare(*argv) -> int:
    table, main, verbs = prepare_data.FLAGS, prepare_data.main, prepare_data.VERBS
    return cli.run("", table, main, [str(a) for a in argv], verbs)


@pytest.fixture
def root(tmp_path):
    """Two pictures of 40 x 20 pixels, a and b, and a map of a."""
    (tmp_path / "set" / "maps").mkdir(parents=True)
    for i, name in enumerate("ab"):
        pixels = np.full((20, 40, 3), i, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / f"{name}.jpg")
        Image.fromarray(np.full((20, 40), i, np.uint8)).save(tmp_path / f"set/maps/{name}.png")
    return tmp_path


def test_coco(root):
    pictures = [dict(id=i, file_name=f"{n}.jpg", width=40, height=20) for i, n in enumerate("abc")]
    says = [dict(image_id=0, caption="one "), dict(image_id=0, caption="two")]
    says += [dict(image_id=1, caption="three"), dict(image_id=2, caption="not here")]
    box = dict(image_id=0, bbox=[10, 5, 20, 10], category_id=7)
    instances = [box, box | {"iscrowd": 1}, box | {"image_id": 1, "category_id": 9}]
    (root / "captions.json").write_text(json.dumps({"images": pictures, "annotations": says}))
    kinds = [dict(id=7, name="cat"), dict(id=9, name="dog")]
    about = {"images": pictures, "annotations": instances, "categories": kinds}
    (root / "instances.json").write_text(json.dumps(about))
    argv = [f"--captions={root}/captions.json", f"--instances={root}/instances.json"]
    assert prepare("coco", f"--path={root}/set", "--maps=maps", *argv) == 0
    source = sources.open_source("folder", path=f"{root}/set")
    assert len(source) == 2 and source.box_classes == ("cat", "dog")
    record = source[0]
    assert record["captions"] == ["one", "two"] and record["box_class"].tolist() == [0]
    np.testing.assert_allclose(record["boxes"], [[0.25, 0.25, 0.75, 0.75]])
    assert (source[1]["segmentation"] == 1).all()


def test_openimages(root):
    (root / "classes.csv").write_text("/m/1,Cat\n/m/2,Dog\n")
    head = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded\n"
    (root / "boxes.csv").write_text(head + "a,x,/m/2,1,0.1,0.5,0.2,0.6,0\nz,x,/m/1,1,0,1,0,1,0\n")
    argv = [f"--boxes={root}/boxes.csv", f"--classes={root}/classes.csv"]
    assert prepare("openimages", f"--path={root}/set", *argv) == 0
    source = sources.open_source("folder", path=f"{root}/set")
    assert len(source) == 1 and source.box_classes == ("Dog",)
    np.testing.assert_allclose(source[0]["boxes"], [[0.1, 0.2, 0.5, 0.6]])


def test_what_does_not_fit_is_one_line(root, capsys):
    (root / "broken.json").write_text("{")
    (root / "other.json").write_text("{}")
    for argv, message in [
        (["coca"], "did you mean 'coco'"),
        (["coco", f"--path={root}/set", "--boxes=x"], "--boxes is not a flag of coco"),
        (["coco", f"--path={root}/set", f"--captions={root}/broken.json"], "broken.json cannot be"),
        (["coco", f"--path={root}/set", f"--captions={root}/other.json"], "other.json: images="),
        (["openimages", f"--path={root}/set"], "--boxes is missing"),
        (["coco", f"--path={root}/set"], "no image of these"),
    ]:
        assert prepare(*argv) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1


PICTURE = dict(id=0, file_name="a.jpg", width=40, height=20)
BOX = dict(image_id=0, bbox=[10, 5, 20, 10], category_id=7)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(images=3), "images=3 must be"),
        (dict(images=[PICTURE | {"width": 0}]), r"images[0].width=0 must be"),
        (dict(images=[PICTURE | {"file_name": "../a.jpg"}]), "is not inside of --path"),
        (dict(annotations=[BOX | {"image_id": 5}]), "annotations[0].image_id=5 is not listed"),
        (dict(annotations=[BOX | {"bbox": [1, 2, 3]}]), "annotations[0].bbox="),
        (dict(annotations=[BOX | {"bbox": [1, 2, -3, 4]}]), "its width and height"),
        (dict(annotations=[BOX | {"category_id": [7]}]), "category_id=[7] is not listed"),
        (dict(annotations=[dict(image_id=0, caption=7)]), "annotations[0].caption=7 must be text"),
        (dict(categories={"id": 7}), "categories="),
    ],
)
def test_what_a_coco_file_says_is_checked_entry_by_entry(change, words, root, refused):
    about = dict(images=[PICTURE], annotations=[BOX], categories=[dict(id=7, name="cat")])
    (root / "x.json").write_text(json.dumps(about | change))
    line = refused(prepare("coco", f"--path={root}/set", f"--instances={root}/x.json"))
    assert f"{root}/x.json: " in line and words in line


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a,/m/1,0.1,0.5,0.2,nan", "boxes.csv:2: YMax=nan must be"),
        ("a,/m/1,x,0.5,0.2,0.6", "boxes.csv:2: XMin=x must be"),
        ("a,/m/1,0.6,0.5,0.2,0.6", "boxes.csv:2: a box that ends before it begins"),
        ("a,/m/9,0.1,0.5,0.2,0.6", "LabelName=/m/9 is not listed"),
        ("a,/m/1,0.1,0.5,0.2", "boxes.csv:2: has not 6 cells"),
        ('a,"/m/1"x,0.1,0.5,0.2,0.6', "boxes.csv:2: "),
        ("a\0,/m/1,0.1,0.5,0.2,0.6", "holds no image"),
    ],
)
def test_what_a_table_of_boxes_says_is_checked_row_by_row(row, words, root, refused):
    (root / "classes.csv").write_text("/m/1,Cat\n")
    (root / "boxes.csv").write_text(f"ImageID,LabelName,XMin,XMax,YMin,YMax\n{row}\n")
    argv = [f"--path={root}/set", f"--boxes={root}/boxes.csv", f"--classes={root}/classes.csv"]
    assert words in refused(prepare("openimages", *argv))
