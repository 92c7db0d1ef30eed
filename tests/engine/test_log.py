import io
import json

import numpy as np
import pytest
from PIL import Image

from ldm_jax.base import disk, raster, terminal
from ldm_jax.base import progress as progress_lib
from ldm_jax.engine import log


def test_a_log_goes_on_after_its_step_and_drops_what_a_kill_left(tmp_path):
    file = tmp_path / "metrics.jsonl"
    logs = log.Log(tmp_path, start=0, total=9)
    for step in (2, 4, 6):
        logs.write("metrics.jsonl", step, {"loss": step / 10})
    logs.close()
    whole = file.read_text()
    file.write_text(whole + '{"step": 8, "lo')
    logs = log.Log(tmp_path, start=4, total=9)
    assert [line["step"] for line in disk.read_jsonl(file)] == [2, 4]
    logs.write("metrics.jsonl", 6, {"loss": np.float32(0.6)})
    logs.close()
    assert [line["step"] for line in disk.read_jsonl(file)] == [2, 4, 6]


@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_a_log_cut_at_any_byte_reads_as_its_whole_lines(tmp_path, cut):
    text = '{"step": 1, "a": 0.5}\n{"step": 2, "a": 1.5}\n'
    (tmp_path / "metrics.jsonl").write_text(text[:cut])
    lines = [json.loads(line) for line in text.splitlines()]
    assert disk.read_jsonl(tmp_path / "metrics.jsonl") == lines[: text[:cut].count("\n")]
    log.Log(tmp_path, start=1, total=2).close()
    assert disk.read_jsonl(tmp_path / "metrics.jsonl") == lines[: min(1, text[:cut].count("\n"))]


def test_uint8_there_and_back_loses_nothing():
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(raster.to_uint8(pixels / 127.5 - 1), pixels)
    np.testing.assert_array_equal(raster.to_uint8([-9.0, 9.0]), [0, 255])


def test_a_grid_holds_every_image_in_reading_order():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 96, 96, 3), np.uint8)
    sheet = raster.grid(images, columns=2, gap=2)
    assert sheet.shape == (3 * 98 + 2, 2 * 98 + 2, 3)
    for i in range(5):
        top, left = 2 + (i // 2) * 98, 2 + (i % 2) * 98
        np.testing.assert_array_equal(sheet[top : top + 96, left : left + 96], images[i])


def test_files_are_there_whole_or_not_at_all(tmp_path):
    disk.write_text(tmp_path / "new" / "a.txt", "old")

    def breaks(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        disk.write_atomic(tmp_path / "new" / "a.txt", breaks)
    assert (tmp_path / "new" / "a.txt").read_text() == "old"
    raster.write_png(tmp_path / "a.png", np.full((3, 4, 3), 7, np.uint8))
    assert Image.open(tmp_path / "a.png").size == (4, 3)


def test_clock():
    assert [progress_lib.clock(s) for s in (0, 65, 3725, -1)] == ["0:00", "1:05", "1:02:05", "0:00"]


@pytest.mark.parametrize("live", [True, False])
def test_progress_is_a_bar_on_a_terminal_and_whole_plain_lines_elsewhere(monkeypatch, live):
    class Stream(io.StringIO):
        isatty = lambda self: live

    monkeypatch.setattr("sys.stderr", stream := Stream())
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress_lib, "SECONDS", {True: 0.0, False: 0.0})
    progress = progress_lib.Progress(2, 6)
    progress.update(3)
    progress.begin(3)
    for step in (4, 5):
        progress.update(step, {"loss": 0.125678})
    progress.say("step 5: said")
    progress.close()
    text = stream.getvalue()
    assert "4/6" in text and "5/6" in text and "loss=0.1257" in text and "step/s" in text
    assert "left" in text and ("\x1b[32m" in text) == live == ("\r" in text)
    lines = [line for line in text.splitlines() if line.strip()]
    assert "step 5: said" in lines, "no bar before or behind it"
    if not live:
        assert all(line.startswith("step ") for line in lines)


def test_colours_are_for_terminals_and_tables_fit_80_columns(monkeypatch):
    class Terminal(io.StringIO):
        isatty = lambda self: True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert terminal.tint("x", "red", Terminal()) == "\x1b[31mx\x1b[0m"
    assert terminal.tint("x", "red", io.StringIO()) == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal.tint("x", "red", Terminal()) == "x"
    rows = {"--short": "word " * 40, "--" + "long" * 9: "said", "--none": ""}
    lines = terminal.table(rows)
    assert max(map(len, lines)) <= 80
    assert " ".join(lines).split() == [w for row in rows.items() for w in " ".join(row).split()]


def test_what_a_full_disk_refused_comes_with_the_next_and_before_a_checkpoint(
    tmp_path, monkeypatch, caplog
):
    logs = log.Log(tmp_path, start=0, total=3)
    logs.write("metrics.jsonl", 1, {"loss": 1.0})

    class Full:
        def __init__(self, *args):
            self._file = open(*args)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            self._file.close()

        def write(self, text):
            self._file.write(text[: len(text) // 2])
            self._file.flush()
            raise OSError(28, "No space left on device")

    for module in (log, disk):
        monkeypatch.setattr(module, "open", Full, raising=False)
    logs.write("metrics.jsonl", 2, {"loss": 2.0})
    logs.images(2, "x", np.zeros((1, 8, 8, 3)), 1)
    assert caplog.text.count("ALARM") == 2 and "No space left" in caplog.text
    assert len(disk.read_jsonl(tmp_path / "metrics.jsonl")) == 1, "no half line"
    with pytest.raises(OSError, match="No space left"):
        logs.settle()
    monkeypatch.undo()
    logs.write("metrics.jsonl", 3, {"loss": 3.0})
    logs.close()
    assert [line["step"] for line in disk.read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert [file.name for file in (tmp_path / "images").iterdir()] == ["x_00000002.png"]
