"""Eight fake CPU devices, one compilation cache a session. Nothing outside the repository."""

import atexit
import gc
import os
import pathlib
import shutil
import sys
import tempfile

import compiling
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {compiling.FAST}"
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is what these tests wait for: what one of them compiled, the others and their
# subprocesses load. A fresh folder each session, so that no test rests on yesterday's programs.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="ldm_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
sys.path.insert(0, str(ROOT))
# Tracing makes many small objects that live on; Python looks through them after every 700.
gc.set_threshold(20_000)

# A long file that began last would leave one of the two processes of launch/test.sh idle.
LONG = {"test_adapters", "test_buckets", "test_commands", "test_convert", "test_devices"}
LONG |= {"test_evaluate", "test_latent_cache", "test_lengths", "test_pipelines", "test_resume"}
LONG |= {"test_sampling_job", "test_start", "test_zoo"}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(scope="session")
def pixel_run(tmp_path_factory):
    """A class-conditional run on 16x16 pixels (f = 1), two steps old: as small as they come."""
    from calling import call

    from ldm_jax import train

    workdir = tmp_path_factory.mktemp("pixels") / "run"
    flags = ["first_stage=identity", "model.mult=(1,)", "model.attention=()", "steps.total=2"]
    flags += ["steps.log=1", "steps.eval=2", "eval.records=8", "latents.batches=1"]
    argv = [f"--config={ROOT}/configs/debug.py:ldm", f"--workdir={workdir}"]
    assert call(train, *argv, *(f"--config.{flag}" for flag in flags)) == 0
    return workdir


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A folder of empty caches for what has a public name; no token, no waiting between tries."""
    from huggingface_hub import constants

    from ldm_jax.base import download, hub

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.setattr(download, "WAITS", (0, 0))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub._local.cache_clear()
    yield tmp_path
    hub._local.cache_clear()


@pytest.fixture
def hub_server(hub_cache, monkeypatch):
    """A fake_hub.Server in the place of the Hub."""
    import fake_hub
    from huggingface_hub import constants

    with fake_hub.serve() as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # another protocol than HTTP
        yield server


@pytest.fixture
def refused(capfd):
    """refused(code, return value) -> the one line that stderr holds."""

    def check(code, expected=2):
        err = capfd.readouterr().err
        assert code == expected, err
        lines = [line for line in err.splitlines() if line.strip()]
        assert len(lines) == 1 and lines[0].startswith("ldm_jax: "), err
        return lines[0]

    return check
