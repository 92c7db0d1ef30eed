"""Data on gs:// reads as it does from a folder here, through a cache that keeps its bounds."""

import os
import pathlib
import pickle
import subprocess
import sys

import fake_gcs
import pytest
from test_sources import BESIDE, assert_same, make_tar, picture, write_metadata

from ldm_jax.base import cache, errors
from ldm_jax.data import images, pipeline, sources

URL = "gs://data/some set"


@pytest.fixture
def server(monkeypatch, tmp_path):
    import gcsfs

    server = fake_gcs.serve()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "none")
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gcsfs.GCSFileSystem.clear_instance_cache()  # of servers that are gone

    async def at_once(seconds):
        pass

    monkeypatch.setattr("gcsfs.retry.asyncio.sleep", at_once)
    yield server
    gcsfs.GCSFileSystem.clear_instance_cache()
    server.shutdown()


@pytest.fixture
def root(tmp_path):
    """{cat,dog}/*.png, with captions beside some."""
    root = tmp_path / "set"
    for i in range(6):
        file = root / ("cat" if i % 2 else "dog") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(images.encode(picture(i)))
    for name in ("0.txt", "2.json"):
        (root / "dog" / name).write_text(BESIDE[name])
    return root


def upload(server, root, url=URL):
    bucket, _, prefix = url.removeprefix("gs://").partition("/")
    for file in root.rglob("*"):
        if file.is_file():
            name = f"{prefix}/{file.relative_to(root).as_posix()}"
            server.put(bucket, name, file.read_bytes())


def opened(kind, path, **how):
    return sources.open_source(kind, path=str(path), **how)


@pytest.mark.parametrize("rows", ["beside", "jsonl", "csv"])
def test_folder_and_tars_read_the_same_from_a_bucket(server, root, tmp_path, rows):
    if rows == "jsonl":
        for file in (root / "dog/0.txt", root / "dog/2.json"):
            file.unlink()
        write_metadata(root)
    if rows == "csv":
        lines = [f"{kind},{i}" for kind, i in (("dog/4.png", "four"), ("cat/1.png", "é"))]
        (root / "metadata.csv").write_text("\n".join(["file_name,text", *lines]))
    make_tar(root, tmp_path / "tars" / "a.tar")
    upload(server, root)
    upload(server, tmp_path / "tars", "gs://data/tars")
    server.put("data", "some set/folder/", b"")  # as a browser's console makes a folder
    for kind, here, there in (
        ("folder", root, f"{URL}/"),
        ("tar", tmp_path / "tars", "gs://data/tars"),
        ("tar", tmp_path / "tars" / "a.tar", "gs://data/tars/a.tar"),
    ):
        local, remote = opened(kind, here), opened(kind, there)
        assert remote.fingerprint == local.fingerprint and len(remote) == len(local)
        for other in (remote, pickle.loads(pickle.dumps(remote))):
            for i in range(len(local)):
                assert other.name(i) == local.name(i) and other.encoded(i) == local.encoded(i)
                assert_same(other[i], local[i])
    server.forbidden.add("data")  # everything lies here by now
    assert_same(remote[1], local[1])


def test_a_bucket_that_fails_is_tried_again_then_one_line_and_never_a_bad_record(server, root):
    upload(server, root)
    source = opened("folder", URL, bucket_cache=0)
    server.failures = 3
    assert len(source.encoded(0)) and server.failed == 3
    server.failures = 1000
    with pytest.raises(errors.RunError, match=r"gs://data/some set/cat/1.png cannot be read") as e:
        pipeline.load(source, [], 0, (0, 0))
    assert "\n" not in str(e.value) and "tried again" in str(e.value)
    server.failures = 0
    del server.objects["data", "some set/cat/1.png"]
    with pytest.raises(images.BadRecord, match=r"cat/1.png: cannot be read"):
        source[0]


@pytest.mark.parametrize("url", ["gs://theirs/x", "gs://data/nothing", "gs://data"])
def test_a_bucket_that_holds_nothing_or_refuses_is_one_line(server, url):
    server.forbidden.add("theirs")
    for kind in ("folder", "tar"):
        with pytest.raises(errors.UsageError, match=f"{url} .*check the name.*rights"):
            opened(kind, url)


def test_a_cut_tar_on_a_bucket_is_one_line_and_its_index_is_read_once(server, root, tmp_path):
    whole = make_tar(root, tmp_path / "tars" / "a.tar").read_bytes()
    server.put("data", "tars/a.tar", whole[: len(whole) // 2 + 700])
    with pytest.raises(errors.UsageError, match=r"gs://data/tars/a.tar is not a whole tar"):
        opened("tar", "gs://data/tars")
    server.put("data", "tars/a.tar", whole)  # another generation
    assert len(opened("tar", "gs://data/tars")) == 6


def test_the_least_recently_used_entries_go_and_damaged_ones_are_none(tmp_path):
    kept = cache.Cache(tmp_path, 1000)
    for i in range(9):
        kept.put(f"{i}", bytes([i]) * 96)  # 100 bytes with its checksum
        os.utime(kept._file(f"{i}"), (i, i))
    assert kept.get("0") == bytes(96)  # used just now
    kept.put("large", b"x" * 250)
    present = [i for i in range(9) if kept.get(f"{i}") is not None]
    assert present[0] == 0 and present[1:] == list(range(10 - len(present), 9))
    assert sum(f.stat().st_size for f in tmp_path.glob("??/*")) <= 1000
    kept.put("too large", b"x" * 1000)
    assert kept.get("too large") is None and kept.get("0") is not None
    kept._file("0").write_bytes(b"torn")
    assert kept.get("0") is None and cache.Cache(tmp_path / "none", 0).get("0") is None


def test_processes_share_a_cache_within_its_bounds(tmp_path):
    code = """if True:
        import sys; from ldm_jax.base import cache
        kept = cache.Cache(sys.argv[1], 20_000)
        for i in range(150):
            key = f"{(i * 7) % 40}" if i % 2 else f"{sys.argv[2]} {i}"
            data = key.encode() * (100 + i)
            kept.put(key + str(i), data)
            assert kept.get(key + str(i)) in (data, None)
    """
    give = lambda k: subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(k)], env=env)
    env = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    assert [process.wait() for process in [give(k) for k in range(3)]] == [0, 0, 0]
    total = sum(file.stat().st_size for file in tmp_path.glob("??/*"))
    assert 15_000 < total <= 20_000 and int((tmp_path / "bytes").read_text()) == total
    assert not list(tmp_path.glob("??/.*"))
