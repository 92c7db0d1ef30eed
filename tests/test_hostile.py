"""What is read is checked by its shape, and commands leave each other's folders alone."""

import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from calling import call
from PIL import Image

from ldm_jax import adherence, bench, cli, doctor, edit, evaluate, sample, sweep, train
from ldm_jax.base import disk, errors, output, owner, record
from ldm_jax.data import files, records
from ldm_jax.engine import checkpoint, goodput
from ldm_jax.evaluation import imagesets, reference
from ldm_jax.jobs import job, settings
from ldm_jax.runs import codecs
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


def test_the_config_of_a_run_that_another_names_is_checked(tmp_path):
    config = record.load(f"{DEBUG}:first_stage", {"model.posterior_logvar": "1.5"})
    record.Record(tmp_path).write_config(config)
    assert codecs.open_codec(str(tmp_path)).model.posterior_logvar == 1.5
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("1.5", '"x"'))
    with pytest.raises(errors.UsageError, match=r"config\.json: .*posterior_logvar=x must be"):
        codecs.open_codec(str(tmp_path))


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


def test_a_part_of_a_run_is_no_place_for_others(tmp_path, monkeypatch):
    (tmp_path / "config.json").touch()
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.chdir(tmp_path / "checkpoints")
    for folder in (tmp_path / "checkpoints" / "a" / "b", "a"):
        with pytest.raises(errors.UsageError, match="lies in checkpoints/ of"):
            output.check_holds("--out", folder)
    output.check_holds("--out", tmp_path / "samples")


def test_a_line_cut_by_a_kill_is_left_out_and_a_damaged_one_is_said(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step"')
    assert disk.read_jsonl(file) == [{"step": 1}]
    file.write_text('{"step": 1}\n{"step"\n')
    with pytest.raises(errors.UsageError, match=r"metrics\.jsonl:2"):
        disk.read_jsonl(file)


@pytest.mark.parametrize("name", ["data.txt", "latents.json", "config.json", "goodput.jsonl"])
def test_a_record_behind_a_broken_link_is_not_taken_for_none(name, tmp_path):
    (tmp_path / name).symlink_to("nowhere")
    run = record.Record(tmp_path)
    reads = {"data.txt": lambda: run.data, "latents.json": lambda: run.latents}
    reads |= {"config.json": lambda: run.config, "goodput.jsonl": lambda: goodput.report(tmp_path)}
    with pytest.raises(errors.UsageError, match=name):
        reads[name]()


SESSION = {"begin": 1.0, "end": 2.0, "from": 0, "reached": 3, "seconds": {"step": 1.0}}


@pytest.mark.parametrize("change", [{"reached": "x"}, {"seconds": {}}, {"seconds": {"step": "1"}}])
def test_a_session_of_wrong_types_is_one_line(change, tmp_path):
    disk.write_jsonl(tmp_path / "goodput.jsonl", [SESSION])
    assert goodput.report(tmp_path)["sessions"] == 1
    disk.write_jsonl(tmp_path / "goodput.jsonl", [SESSION, SESSION | change])
    with pytest.raises(errors.UsageError, match=r"goodput\.jsonl:2"):
        goodput.report(tmp_path)


def test_shards_that_nobody_knows_are_not_mixed_with_others(tmp_path):
    samples = job.Job(tmp_path, 4, 2, "png")
    samples.claim({"seed": 1})
    samples.write(samples.shards[0], np.zeros((2, 8, 8, 3), np.uint8), [{}, {}])
    job.Job(tmp_path, 4, 2, "png").claim({"seed": 1})
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(errors.UsageError, match=r"no manifest\.json"):
        job.Job(tmp_path, 4, 2, "png").claim({"seed": 2})


def test_a_file_of_holes_is_not_read_for_hours(tmp_path):
    samples = job.Job(tmp_path, 2, 1, "png")
    for shard in samples.shards:
        samples.write(shard, np.zeros((1, 8, 8, 3), np.uint8), [{}])
    os.truncate(tmp_path / "images" / "000001.png", 2**40)
    assert samples.missing() == samples.shards[1:]


def test_an_array_record_that_is_none_is_one_line(tmp_path):
    disk.write_json(tmp_path / "x.array_record.json", {"classes": [], "box_classes": []})
    (tmp_path / "x.array_record").touch()
    with pytest.raises(errors.UsageError, match=r"x\.array_record is no ArrayRecord"):
        records.ArrayRecords(str(tmp_path / "x.array_record"))


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1, "b": {"c": 1, "c": 2}}')
    with pytest.raises(errors.UsageError, match="'c' is there twice"):
        disk.read_json(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a,b\n1,2,3\n", "x.csv:2: has not 2 cells"),
        (b"a,a\n1,2\n", "two columns a"),
        (b"b,c\n1,2\n", "no column a"),
        (b"", "no column a"),
        (b"a,b\n\xff,2\n", "x.csv cannot be read"),
        (b"a,b\n" + b"x" * 200_000 + b",2\n", "x.csv:"),
    ],
)
def test_a_table_that_is_none_is_one_line(content, words, tmp_path):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(errors.UsageError, match=r"x\.csv") as e:
        list(disk.read_table(tmp_path / "x.csv", "a"))
    assert words in str(e.value)
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbfa,b\r\n1,2\r\n")
    assert [row for _, row in disk.read_table(tmp_path / "x.csv", "a")] == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize("text", ["1_6", "\u0661\u0666", "9" * 5000, "1.5", "x"])
def test_whole_numbers_have_digits_alone(text):
    with pytest.raises(errors.UsageError, match="--size="):
        settings.read_size(text, None)
    with pytest.raises(errors.UsageError, match="--worker="):
        settings.read_worker(f"0/{text}")


def test_a_word_of_any_length_is_one_line_that_can_be_read(refused):
    line = refused(call(doctor, f"--config={'x' * 10_000}"))
    assert len(line) < 1500


ROOT = pathlib.Path(__file__).resolve().parent.parent
DEBUG = ROOT / "configs" / "debug.py"
IDLE = [
    (sample, "--run=any --out=OUT --platforms=cpu", "--platforms"),
    (sample, "--run=any --export=OUT/x --num=3", "--num"),
    (sample, "--run=any --out=OUT --labels=1 --prompts=a", "--labels and --prompts"),
    (evaluate, "--run=any --out=OUT --reference=x", "--reference"),
    (evaluate, "--samples=any --out=OUT --lpips=vgg16,lpips:vgg", "--lpips"),
    (evaluate, "--run=any --out=OUT --bootstrap=3", "--bootstrap=3"),
    (evaluate, "--summary=x --against=y --metrics=fd", "--metrics"),
    (bench, "--compare=a,b --parts=data", "--parts"),
    (bench, "--config=DEBUG:ldm --tolerance=2", "--tolerance"),
    (sweep, "--sweep=any --workdir=OUT --report --cell=x", "--report and --cell"),
    (adherence, "--run=any --out=OUT --null --guidance=2", "--guidance"),
    (doctor, "--config.data.size=3", "--config.data.size"),
    (train, "--config=DEBUG:ldm --workdir=OUT --config.optim.denoiser.clip=True", "got bool"),
    (
        train,
        "--config=DEBUG:ldm --workdir=OUT --config.distil.huber=0.1",
        "without config.distil.method",
    ),
    (train, "--config=DEBUG:ldm --workdir=OUT --config.loss.gamma=2", "loss.weight=uniform"),
]


@pytest.mark.parametrize(("command", "flags", "words"), IDLE, ids=lambda x: str(x)[-40:])
def test_a_flag_that_does_nothing_is_refused(command, flags, words, refused, tmp_path):
    argv = flags.replace("DEBUG", str(DEBUG)).replace("OUT", str(tmp_path / "out")).split()
    assert words in refused(call(command, *argv))
    assert not (tmp_path / "out").exists()


def test_who_writes_holds_the_folder(pixel_run, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(owner, "_try", lambda file, shared, path: False)
    argv = [f"--run={pixel_run}", f"--out={tmp_path}"]
    drawing = [*argv, "--num=1", "--steps=1"]
    editing = lambda *argv: cli.run("", edit.FLAGS, edit.main, argv, edit.VERBS)
    assert "is in use" in refused(editing("progress", *drawing, "--frames=2"))
    assert "is in use" in refused(call(adherence, *drawing, "--batch_size=1", "--guidance=1"))
    assert os.listdir(tmp_path) == [owner.NAME]


@pytest.mark.parametrize("name", ["meta/metadata", "state/_METADATA", "state/d/*"])
def test_a_checkpoint_of_a_pipe_is_not_waited_for(name, pixel_run, tmp_path):
    shutil.copytree(pixel_run, tmp_path / "run")
    for step in (tmp_path / "run" / "checkpoints").iterdir():
        for file in step.glob(name):
            file.unlink()
            os.mkfifo(file)
    with pytest.raises(errors.UsageError, match="no readable checkpoint"):
        checkpoint.read_params(tmp_path / "run")


@pytest.mark.slow
def test_a_campaign_of_bad_inputs_breaks_no_promise():
    """A sample of tests/campaign.py, whose output has the seed and what broke."""
    command = [sys.executable, str(ROOT / "tests" / "campaign.py"), "--count=300"]
    assert subprocess.run(command, cwd=ROOT, timeout=7200).returncode == 0
