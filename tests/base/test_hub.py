"""Files by public name: from a server like the Hub's, from the cache, or a line that says why."""

import hashlib
import json
import os
import subprocess
import sys

import fake_hub
import pytest

from ldm_jax.base import errors, hub, tensorfile
from ldm_jax.data import captions

NAME, WORDS = "hf:somebody/words", ("\n".join([*captions.SPECIAL, "circle"]) + "\n").encode()
ARRAYS = bytes(i % 251 for i in range(3000))
DIGEST = hashlib.sha256(ARRAYS).hexdigest()


@pytest.fixture
def server(hub_server):
    """A hub with two files in a repository, and one outside of it."""
    hub_server.repositories["somebody/words"] = {"vocab.txt": WORDS, "a/w.safetensors": ARRAYS}
    hub_server.plain["/files/w.pth"] = ARRAYS
    return hub_server


def forget():
    """As another process would begin."""
    hub._local.cache_clear()


def named(server, path="/files/w.pth", digest=DIGEST):
    return f"{server.url}{path}#sha256={digest}"


def test_a_path_stays_a_path():
    assert str(hub.folder("some/folder", "vocab.txt")) == "some/folder"


def test_a_file_of_the_hub_is_fetched_once_and_then_offline(server, monkeypatch):
    from huggingface_hub import constants

    assert captions.read_vocabulary(NAME)["circle"] == len(captions.SPECIAL)
    assert hub.file("hf:somebody/words/a/w.safetensors@main").read_bytes() == ARRAYS
    assert server.count("/cdn/") == 1
    forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert captions.read_vocabulary(NAME)["circle"] == len(captions.SPECIAL)
    assert hub.file("hf:somebody/words/a/w.safetensors").read_bytes() == ARRAYS
    assert server.count("/cdn/") == 1
    with pytest.raises(errors.UsageError, match="HF_HUB_OFFLINE"):
        hub.file("hf:somebody/others/w.bin")


def test_a_private_repository_wants_the_token_and_nobody_else_gets_it(server, monkeypatch):
    server.private.add("somebody/words")
    with pytest.raises(errors.UsageError, match=r"401.*HF_TOKEN"):
        hub.folder(NAME, "vocab.txt")
    monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
    assert hub.file(f"{NAME}/a/w.safetensors").read_bytes() == ARRAYS
    assert hub.file(named(server)).read_bytes() == ARRAYS
    others = [told for _, path, told in server.log if path.startswith(("/cdn/", "/files/"))]
    assert others and not any(others)


@pytest.mark.parametrize("name", [NAME + "/a/w.safetensors", "url"])
def test_what_passes_is_tried_again_and_a_cut_download_goes_on(server, name):
    server.failures, server.status = 2, 429
    server.cut |= {"/cdn/somebody/words/a/w.safetensors", "/files/w.pth"}
    assert hub.file(named(server) if name == "url" else name).read_bytes() == ARRAYS


@pytest.mark.parametrize("name", [NAME + "/a/w.safetensors", NAME + "/vocab.txt", "url"])
def test_other_bytes_are_refused_and_not_kept(server, hub_cache, name):
    server.wrong |= {"/cdn/somebody/words/a/w.safetensors", "/vocab.txt", "/files/w.pth"}
    name, right = (named(server) if name == "url" else name), (ARRAYS, WORDS)
    with pytest.raises(errors.UsageError, match="other bytes"):
        hub.file(name)
    kept = [p for p in hub_cache.rglob("*") if p.is_file() and p.stat().st_size in map(len, right)]
    assert not kept
    server.wrong.clear()
    assert hub.file(name).read_bytes() in right


def test_a_file_of_any_server_is_cached_by_its_hash(server, hub_cache):
    place = hub.file(named(server, "/moved/files/w.pth"))
    assert place == hub_cache / "own/ldm_jax/weights" / DIGEST[:8] / "w.pth"
    forget()
    del server.plain["/files/w.pth"]
    assert hub.file(named(server)) == place
    assert tensorfile.digest(named(server)) == DIGEST
    place.write_bytes(b"by hand, and wrong")
    forget()
    with pytest.raises(errors.UsageError, match=f"{place} holds other bytes.*delete it"):
        hub.file(named(server))


def test_torch_has_fetched_some_already(server, hub_cache, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(hub_cache / "torch"))
    place = hub_cache / "torch/hub/checkpoints/w.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(ARRAYS)
    assert hub.file(named(server, digest=DIGEST[:8])) == place
    assert not server.log


def test_every_known_name_is_one_that_can_be_checked():
    for name, address in hub.KNOWN.items():
        assert hub.is_name(name)
        digits = address.rpartition("@" if address.startswith(hub.HF) else "#sha256=")[2]
        assert len(digits) == (40 if address.startswith(hub.HF) else 64), name


@pytest.mark.parametrize(
    "name, said",
    [
        ("hf:nobody/nothing/w.bin", r"401.*get it.*nobody/nothing"),
        ("hf:somebody/words/none.bin", r"holds no none\.bin"),
        ("hf:somebody/words@old", r"404"),
        ("hf:a/b/c/../d.bin", "holds no|could not"),
        ("hf:", "could not be fetched"),
        ("hf:what is this", "could not be fetched"),
        ("URL/files/none.pth#sha256=0123abcd", r"404.*put it at .*0123abcd/none\.pth"),
        ("URL/files/w.pth", r"#sha256=DIGITS"),
        ("URL/#sha256=0123abcd", "not the address of a file"),
        ("http://127.0.0.1:1/w.pth#sha256=0123abcd", "refused.*put it at"),
        ("lpips:vg", "did you mean 'lpips:vgg'"),
    ],
)
def test_what_cannot_be_had_is_one_line_with_the_remedy(server, name, said):
    with pytest.raises(errors.UsageError, match=said) as caught:
        tensorfile.read(name.replace("URL", server.url))
    assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_answer_is_one_line(hub_cache, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(errors.UsageError, match="refused") as caught:
        captions.read_vocabulary(NAME)
    assert "\n" not in str(caught.value)


HOST = """
import sys
from ldm_jax.base import errors, hub
from ldm_jax.engine import hosts
hosts.connect()
print(hub.file("hf:somebody/words/a/w.safetensors").stat().st_size)
try:
    hub.file("hf:nobody/nothing/w.bin")
except errors.UsageError as e:
    print(e)
hosts.exchange(None)
"""


def test_of_two_hosts_one_fetches_and_the_other_takes_the_cache(server, tmp_path):
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environ = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
    environ |= {"JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}"}
    start = lambda i: subprocess.Popen(
        [sys.executable, "-c", HOST],
        env=environ | {"JAX_PROCESS_ID": str(i)},
        stdout=subprocess.PIPE,
        text=True,
    )
    said = [process.communicate(timeout=120)[0].splitlines() for process in [start(0), start(1)]]
    assert said[0] == said[1] and said[0][0] == str(len(ARRAYS)) and "401" in said[0][1], said
    assert server.count("/cdn/") == server.count("/tree/") == 1, json.dumps(server.log)
    assert server.count("/nobody/nothing/") == 1
