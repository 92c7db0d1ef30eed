"""The checker of data sets finds what was planted, and training replaces just that."""

import json
import pathlib

import numpy as np
import pytest
from calling import call
from PIL import Image

from ldm_jax import check_data, train
from ldm_jax.base import config as config_lib
from ldm_jax.data import files
from ldm_jax.runs import data as data_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXT, LAYOUT, SEMANTIC = (f"{ROOT}/configs/tasks.py:{t}" for t in ("text", "layout", "semantic"))
BOX = dict(boxes=[[0.1, 0.1, 0.9, 0.9]], box_labels=["cat"])
ROWS = {  # what is wrong with each of twelve pictures
    "good": dict(caption="a red circle", **BOX),
    "truncated": dict(caption="a red circle", **BOX),
    "small": dict(caption="a red circle", **BOX),
    "grey": dict(caption="a red circle", **BOX),
    "mute": dict(BOX),
    "blank": dict(caption=" ", **BOX),
    "long": dict(caption="a red circle " * 30, **BOX),
    "bare": dict(caption="a red circle"),
    "empty": dict(caption="a red circle", boxes=[]),
    "inverted": dict(caption="a red circle", boxes=[[0.9, 0, 0.1, 1]], box_labels=["cat"]),
    "outside": dict(caption="a red circle", boxes=[[1.2, 0, 1.5, 1]], box_labels=["cat"]),
    "unnamed": dict(caption="a red circle", boxes=[[0, 0, 1, 1]]),
}


@pytest.fixture
def root(tmp_path):
    for i, name in enumerate(ROWS):
        side = 20 if name == "small" else 40
        pixels = np.random.default_rng(i).integers(0, 256, (side, side, 3)).astype(np.uint8)
        image = Image.fromarray(pixels).convert("L" if name == "grey" else "RGB")
        image.save(tmp_path / f"{name}.png")
    broken = tmp_path / "truncated.png"
    broken.write_bytes(broken.read_bytes()[:900])
    rows = [json.dumps({"file": f"{name}.png"} | row) for name, row in ROWS.items()]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "circle")
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    return tmp_path


def check(config, root, out, *more):
    argv = [f"--config={config}", f"--out={out}", f"--config.data.path={root}"]
    argv += ["--config.data.source=folder", f"--config.data.vocabulary={root}/vocab.txt"]
    code = call(check_data, *argv, *more)
    return code, json.loads((out / "summary.json").read_text())


def named(summary):
    """{kind: names of the records}"""
    return {
        kind: {name for name in ROWS if any(f"{name}.png" in e for e in entry["examples"])}
        for kind, entry in summary["found"].items()
    }


def test_a_condition_that_the_data_lack_is_named(root, tmp_path, capsys):
    (root / "truncated.png").unlink()
    argv = [f"--config={ROOT}/configs/debug.py:ldm", f"--out={tmp_path}/out"]
    argv += ["--config.data.source=folder", f"--config.data.path={root}"]
    (root / "metadata.jsonl").unlink()
    call(check_data, *argv)
    assert "config.conditioners.class is left out" in capsys.readouterr().out


def test_captions_are_checked(root, tmp_path, capsys):
    code, summary = check(TEXT, root, tmp_path / "out")
    assert code == 1 and "2 of 12 records cannot be used" in capsys.readouterr().err
    assert summary["with"]["caption"] == 9, "all but the mute, the blank and the truncated"
    found = named(summary)
    assert found["unreadable"] == {"truncated"}
    assert found["smaller than 32 pixels, enlarged"] == {"small"}
    assert found["L image, converted to RGB"] == {"grey"}
    assert found["refused by TextIds"] == {"mute"}
    assert found["empty caption"] == {"mute", "blank"}
    assert found["caption longer than 24 tokens, cut"] == {"long"}
    code, _ = check(TEXT, root, tmp_path / "out", "--config.data.max_bad_fraction=0.2")
    assert code == 0


def test_boxes_are_checked(root, tmp_path):
    code, summary = check(LAYOUT, root, tmp_path / "out")
    assert code == 1 and summary["replaced"] == 3 and summary["box_classes"] == 1
    found = named(summary)
    assert found["no boxes"] == {"bare", "empty"}
    assert found["refused by LayoutIds"] == {"bare", "unnamed"}
    assert found["empty, inverted or outside boxes, dropped"] == {"inverted", "outside"}


def test_training_replaces_what_the_checker_says_it_will(root, tmp_path):
    _, summary = check(LAYOUT, root, tmp_path / "out")
    overrides = {"data.source": "folder", "data.path": str(root), "first_stage": "identity"}
    overrides |= {"batch_size": "16", "data.holdout": "0.01", "data.size": "16"}
    config = config_lib.load(LAYOUT, overrides)
    source = data_lib.open_source(config.data)
    config = data_lib.resolve(config, source)
    with config.unlocked():
        config.eval.update(records=12, batch_size=12)
    [batch] = data_lib.held_out_batches(config, source, ("image", "layout_ids"))
    assert {source.name(i).removesuffix(".png") for i in batch["bad"] if i >= 0} == {
        "truncated",
        "bare",
        "unnamed",
    }
    assert (batch["bad"] >= 0).sum() == summary["replaced"]


def test_maps_lie_beside_their_images(tmp_path):
    (tmp_path / "maps").mkdir()
    rows = []
    for i, label in enumerate((3, 255, 5)):
        Image.fromarray(np.full((40, 40, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
        labels = np.full((40, 40 + (label == 5)), label, np.uint8)
        Image.fromarray(labels).save(tmp_path / "maps" / f"{i}.png")
        rows.append(json.dumps({"file": f"{i}.png", "segmentation": f"maps/{i}.png"}))
    rows.append(json.dumps({"file": "0.png", "segmentation": "maps/none.png"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows[:3]) + "\n")
    source = files.Folder(str(tmp_path))
    assert len(source) == 3 and (source[0]["segmentation"] == 3).all()
    argv = (SEMANTIC, tmp_path, tmp_path / "out")
    (tmp_path / "vocab.txt").touch()
    code, summary = check(*argv)
    assert code == 1 and summary["replaced"] == 1
    assert summary["found"]["labels of the map out of range"]["examples"] == ["1.png"]
    assert "map of 41x40, not 40x40" in str(summary["found"]["refused by Crop"]["examples"])
    (tmp_path / "metadata.jsonl").write_text(f"{rows[1]}\n{rows[3]}\n")
    _, summary = check(*argv)
    assert "none.png is not there" in str(summary["found"]["unreadable"]["examples"])


@pytest.mark.parametrize("command", [train, check_data])
def test_a_key_that_the_source_does_not_take_is_refused(command, tmp_path, refused):
    argv = [f"--config={ROOT}/configs/debug.py:ldm", "--config.data.split=nonsense"]
    where = "workdir" if command is train else "out"
    line = refused(call(command, *argv, f"--{where}={tmp_path}/out"))
    assert "config.data.split=nonsense" in line and "scenes" in line
