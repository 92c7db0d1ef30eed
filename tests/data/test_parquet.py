"""Laws of Parquet files as a source: rows are records in any order, and few groups are held."""

import concurrent.futures
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ldm_jax.base import errors
from ldm_jax.data import images, parquet, sources

CLASSES = ("cat", "dog", "fox")


def picture(i):
    return np.random.default_rng(i).integers(0, 256, (9, 12, 3)).astype(np.uint8)


def table(rows, struct=True, names=CLASSES, label=lambda i: i % 3, **columns):
    """As `datasets` writes one."""
    encoded = [images.encode(picture(i)) for i in rows]
    column = [{"bytes": data, "path": f"{i}.png"} for i, data in zip(rows, encoded)]
    given = {"image": column if struct else encoded, "label": [label(i) for i in rows]}
    given |= {"text": [f"number {i}" for i in rows]} | columns
    made = pa.table({name: values for name, values in given.items() if values is not None})
    features = {"label": {"_type": "ClassLabel", "names": list(names)}} if names else {}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    return made.replace_schema_metadata(about)


def write(folder, *, size=3, files=2, rows=10, split="train", **how):
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(np.array_split(np.arange(rows), files)):
        file = folder / "data" / f"{split}-{number:05d}-of-{files:05d}.parquet"
        made = table(part.tolist() or [0], **how).slice(0, len(part))
        pq.write_table(made, file, row_group_size=size)
    return str(folder)


def opened(path, **how):
    return sources.open_source("parquet", path=path, **how)


@pytest.mark.parametrize("struct", [True, False])
def test_every_row_is_a_record_in_any_order(tmp_path, struct, monkeypatch):
    monkeypatch.setattr(parquet, "KEPT", 1)  # one group at a time
    source = opened(write(tmp_path, struct=struct))
    assert len(source) == 10 and source.classes == CLASSES
    for other in (source, pickle.loads(pickle.dumps(source))):
        for i in np.random.default_rng(0).permutation(10):
            record = other[i]
            np.testing.assert_array_equal(record["image"], picture(i))
            assert record["caption"] == f"number {i}" and record["class"] == i % 3
    assert source.name(7) == "data/train-00001-of-00002.parquet row 2"


def test_groups_are_read_once_for_all_threads_and_the_oldest_go(tmp_path, monkeypatch):
    source, read = opened(write(tmp_path, files=1, rows=12)), []
    reader = source._read
    monkeypatch.setattr(source, "_read", lambda group: (read.append(group), reader(group))[1])
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for i, record in enumerate(pool.map(source.__getitem__, range(12))):
            np.testing.assert_array_equal(record["image"], picture(i))
    assert sorted(read) == [0, 1, 2, 3]
    monkeypatch.setattr(parquet, "KEPT", 2 * int(source._groups[:, 4].max()))
    source[0]
    read.clear()
    for i in (9, 0, 3, 0, 9):  # of the groups 3, 0, 1 (3 goes), 0, 3
        source[i]
    assert read == [1, 3]


def test_the_fingerprint_is_of_the_data_and_not_of_the_place(tmp_path):
    seen = {opened(write(tmp_path / "a")).fingerprint}
    seen.add(opened(write(tmp_path / "b")).fingerprint)
    assert len(seen) == 1
    seen.add(opened(write(tmp_path / "c", text=[f"number {9 - i}" for i in range(5)])).fingerprint)
    seen.add(opened(write(tmp_path / "d", label=lambda i: 0)).fingerprint)
    seen.add(opened(write(tmp_path / "e", rows=8)).fingerprint)
    assert len(seen) == 4


def test_columns_and_splits_by_name(tmp_path):
    several = dict(caption=[["a", "b"]] * 5, prompt=["p"] * 5)
    path = write(tmp_path / "set", names=(), label=lambda i: CLASSES[i % 2], **several)
    source = opened(path)
    assert source[0]["captions"] == ["a", "b"] and source.classes == CLASSES[:2]
    assert opened(path, caption_field="prompt")[0]["caption"] == "p"
    plain = opened(write(tmp_path / "plain", label=lambda i: i, names=(), text=None))
    assert plain.classes == tuple(map(str, range(10))) and "caption" not in plain[0]
    path = write(tmp_path / "parts")
    write(tmp_path / "parts", split="test", rows=4, label=lambda i: -1)
    assert len(opened(path, split="train")) == 10
    with pytest.raises(errors.UsageError, match=r"row 0 has -1.*split"):
        opened(path)


@pytest.mark.parametrize(
    "how, given, message",
    [
        ({}, dict(label_field="lable"), "no column 'lable'.*did you mean 'label'"),
        ({}, dict(caption_field="image"), "its column 'image' is struct"),
        ({}, dict(image_field="text"), "its column 'text' is string"),
        ({}, dict(split="tran"), "split='tran'.*did you mean 'train'"),
        (dict(rows=0), {}, "hold no rows"),
        (dict(label=lambda i: 7), {}, "row 0 has 7, which must be"),
        (dict(label=lambda i: None if i == 1 else 1), {}, "row 1 has None"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, how, given, message):
    path = write(tmp_path, **how)
    with pytest.raises(errors.UsageError, match=message) as caught:
        opened(path, **given)
    assert "\n" not in str(caught.value)


def test_files_that_are_none_or_differ_are_one_line(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(errors.UsageError, match="parquet file there"):
        opened(str(tmp_path / "none"))
    for name, column in (("two", {"a": [b"x"], "b": [b"y"]}), ("words", {"a": ["x"]})):
        pq.write_table(pa.table(column), tmp_path / f"{name}.parquet")
    with pytest.raises(errors.UsageError, match=r"several columns of images \(a, b\)"):
        opened(str(tmp_path / "two.parquet"))
    with pytest.raises(errors.UsageError, match=r"no column of images.*\(it has a\)"):
        opened(str(tmp_path / "words.parquet"))
    path = write(tmp_path / "set")
    file = tmp_path / "set/data/train-00001-of-00002.parquet"
    whole = file.read_bytes()
    for content in (b"", b"rubbish" * 9, whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(errors.UsageError, match=r"00001-of-00002.parquet cannot be read"):
            opened(path)
    pq.write_table(table(range(5), names=("a", "b", "c")), file)
    with pytest.raises(errors.UsageError, match="differ in their columns"):
        opened(path)


def test_a_damaged_or_missing_image_is_a_bad_record(tmp_path):
    column = [None, {"bytes": None, "path": "a.png"}, {"bytes": b"rubbish", "path": ""}]
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    source = opened(str(tmp_path))
    for i, why in enumerate(("has no bytes", "has no bytes", "does not decode")):
        with pytest.raises(images.BadRecord, match=rf"a.parquet row {i}: {why}"):
            source[i]
    source = opened(write(tmp_path / "set", files=1))
    (tmp_path / "set/data/train-00000-of-00001.parquet").unlink()
    with pytest.raises(images.BadRecord, match=r"row 4: cannot be read"):
        source[4]
