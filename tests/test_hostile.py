"""What is read is checked by its shape, and commands leave each other's folders alone."""

import io
import json
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from ldm_jax.base import disk, errors, output, record
from ldm_jax.data import files
from ldm_jax.evaluation import imagesets, reference
from ldm_jax.weights import official


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(folder / f"{i}.png")
    return folder


ROWS = [
    *({"label": label} for label in (-1, 0.5, True, {"a": 1}, 10**9, 2**31 + 5, [1], float("nan"))),
    *({"caption": 7}, {"captions": "abc"}, {"captions": [None, 3]}, {"captions": 5}),
    *({"boxes": [[0, 0, 1]]}, {"boxes": "abc"}, {"boxes": [["a"] * 4]}, {"boxes": 3}),
    *({"boxes": [[0, 0, float("nan"), 1]]}, {"box_labels": 3}, {"box_labels": [{}]}),
    *({"objects": 3}, {"objects": [{"category": 1}]}, {"objects": "abc"}, {"objects": [None]}),
    *({"segmentation": 5}, {"split": 3}, {"file": [1]}, {"file": "a\nb"}),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_row_of_a_wrong_kind_is_refused_with_its_line(row, pictures):
    file = pictures / "metadata.jsonl"
    rows = [{"file": "1.png", "label": 0}, {"file": "0.png", "label": 1} | row]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(errors.UsageError, match=r"metadata.jsonl:2: .*") as e:
        files.Folder(str(pictures))
    file.unlink()
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("content", [bytes(range(256)), b"[" * 100_000, b"3\n", b"null\n"])
def test_metadata_that_is_none_is_refused(content, pictures):
    (pictures / "metadata.jsonl").write_bytes(content)
    with pytest.raises(errors.UsageError, match=r"metadata.jsonl:1"):
        files.Folder(str(pictures))
    (pictures / "metadata.jsonl").unlink()


@pytest.mark.parametrize("make", [os.mkfifo, lambda p: os.symlink("nowhere", p), os.mkdir])
def test_only_regular_files_are_data(make, pictures):
    odd = pictures / "odd.png"
    make(odd)
    try:
        if odd.is_dir():
            assert len(files.Folder(str(pictures))) == 3
        else:
            with pytest.raises(errors.UsageError, match=r"odd\.png"):
                files.Folder(str(pictures))
    finally:
        odd.rmdir() if odd.is_dir() else odd.unlink()


JSON = [b"{", b"[]", b"null", b"3", b'{"stage": "auto', bytes(range(256)), b"[" * 100_000]
JSON += [b'{"stage": 3, "optim": 4}', b'{"optim": {"a": 1}}', b'{"conditioners": [1]}']


@pytest.mark.parametrize("content", JSON, ids=lambda c: str(c[:12]))
def test_a_config_that_is_none_is_one_line(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(errors.UsageError, match=r"config.json") as e:
        record.read(tmp_path)
    assert "\n" not in str(e.value)


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def lying(shape) -> bytes:
    """An .npz whose header says another shape than its bytes have."""
    header = io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue() + b"\0" * 100)
    return file.getvalue()


IMAGES = npz(arr_0=np.zeros((2, 8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    "content",
    [b"", IMAGES[:90], lying((10**9, 8, 8, 3)), npz(arr_0=np.zeros(3)), npz(mu=1)],
    ids=len,
)
def test_images_that_are_none_are_refused(content, tmp_path):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(errors.UsageError, match=r"x\.npz"):
        list(imagesets.open_set(tmp_path / "x.npz", "--samples").batches())


def test_headers_of_every_version_are_read(tmp_path):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.zeros((2, 8, 8, 3), np.uint8), (3, 0))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0.npy", file.getvalue())
    assert imagesets.open_set(tmp_path / "x.npz", "--samples").count == 2


@pytest.mark.parametrize(
    "arrays",
    [
        dict(mu=np.full(3, np.nan), sigma=np.eye(3)),
        dict(mu=np.zeros(3), sigma=np.eye(2)),
        dict(mu=np.zeros(3), sigma=np.full((3, 3), np.inf)),
        dict(mu=np.array(["a"]), sigma=np.eye(1)),
    ],
)
def test_statistics_that_are_none_are_refused(arrays, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(errors.UsageError, match="finite numbers"):
        reference.load(tmp_path / "x.npz")


def test_a_yaml_that_grows_without_end_is_refused(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("a: &a [x, x]\n" + "".join(f"k{i}: [*a, *a]\n" for i in range(9)))
    with pytest.raises(errors.UsageError, match="aliases"):
        official._read_yaml(file)


@pytest.mark.parametrize("mark", output.MARKS)
def test_a_folder_of_one_command_is_not_written_by_another(mark, tmp_path):
    output.check_holds("--out", tmp_path)
    (tmp_path / mark).touch()
    output.check_holds("--out", tmp_path, mark)
    with pytest.raises(errors.UsageError, match=f"--out=.* holds .*{mark}"):
        output.check_holds("--out", tmp_path)


def test_a_line_cut_by_a_kill_is_left_out_and_a_damaged_one_is_said(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step"')
    assert disk.read_jsonl(file) == [{"step": 1}]
    file.write_text('{"step": 1}\n{"step"\n')
    with pytest.raises(errors.UsageError, match=r"metrics\.jsonl:2"):
        disk.read_jsonl(file)
