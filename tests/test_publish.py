"""A run is published and taken back by its name, against a server like the Hub's."""

import json
import pathlib
import sys

import fake_hub
import pytest
from calling import call
from ml_collections import ConfigDict

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import parity

import ldm_jax
from ldm_jax import convert, evaluate, train
from ldm_jax.base import errors, record
from ldm_jax.engine import checkpoint, inherit, published
from ldm_jax.runs import card, kinds, publishing

# huggingface_hub 2.4 uploads files by an argument that its client will drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
NAME = "hf:somebody/pixels"
SCHEDULER = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear"}


@pytest.fixture
def server(hub_server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
    return hub_server


def push(run, name=NAME, *argv):
    return convert.run(["export", f"--run={run}", f"--push={name}", *argv])


def held(server, name=NAME) -> dict:
    return server.repositories[name.removeprefix("hf:")]


def test_a_run_is_taken_back_as_it_was_published(server, pixel_run):
    assert push(pixel_run, NAME, "--license=mit", "--data_license=made here") == 0
    files = held(server)
    assert server.private == {"somebody/pixels"}
    ours, theirs = ldm_jax.load(pixel_run), ldm_jax.load(NAME)
    assert theirs.digest == ours.digest and theirs.step == ours.step == 2
    assert record.read(NAME).to_dict() == record.read(pixel_run).to_dict()
    for kind in ("params", "ema"):  # the average took the place of both
        inherit.check(NAME, {"denoiser": checkpoint.saved(pixel_run)[kind]["denoiser"]})
    text = files["README.md"].decode()
    header = text.split("---")[1]
    assert "license: mit" in header and "unconditional-image-generation" in header
    for said in (ours.digest, "made here", record.Record(pixel_run).data, "FID of samples", NAME):
        assert said in text, said
    assert str(pixel_run.parent) not in b"".join(files.values()).decode(errors="ignore")
    assert {"samples.png", "ldm_jax/weights.safetensors"} < files.keys()


@pytest.fixture(scope="session")
def golden(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    return parity.unpack(parity.ROOT / "tests" / "golden", folder) / "diffusers"


def model(folder, prefix="") -> dict:
    """The files of a model of diffusers, as a repository holds them."""
    paths = [path for path in folder.iterdir() if path.name not in ("io.npz", "case.json")]
    return {f"{prefix}{path.name}": path.read_bytes() for path in paths}


def test_a_model_of_the_hub_is_converted_and_published(server, golden, tmp_path):
    server.repositories["them/vae"] = model(golden / "autoencoder_kl_sd_legacykeys")
    server.repositories["them/vae"]["other/model.safetensors"] = b"not read"
    run = tmp_path / "run"
    assert convert.run(["diffusers", "--checkpoint=hf:them/vae", f"--out={run}"]) == 0
    assert not server.count("/other/") and server.count("diffusion_pytorch_model.bin")
    assert push(run) == 0
    assert ldm_jax.load(NAME).digest == ldm_jax.load(run).digest
    files = held(server)
    assert json.loads(files["config.json"])["_class_name"] == "AutoencoderKL"
    assert "library_name: diffusers" in files["README.md"].decode()


@pytest.mark.slow
def test_a_pipeline_of_the_hub_is_published_with_its_parts(server, golden, tmp_path):
    files = model(golden / "unet2dcond_sd2_linearproj", "unet/")
    files |= model(golden / "autoencoder_kl_sd_legacykeys", "vae/")
    files["scheduler/scheduler_config.json"] = json.dumps(SCHEDULER).encode()
    files["model_index.json"] = json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}).encode()
    server.repositories["them/pipe"], run = files, tmp_path / "run"
    assert convert.run(["diffusers", "--checkpoint=hf:them/pipe", f"--out={run}"]) == 0
    assert push(run) == 0
    assert ldm_jax.load(NAME).digest == ldm_jax.load(run).digest
    files = held(server)
    assert {"unet/config.json", "vae/config.json", "ldm_jax/first_stage/config.json"} < files.keys()


def test_what_a_card_says_is_of_the_weights_that_are_published(pixel_run, tmp_path):
    figures = {"fid": 3.5, "fid_std": 0.25, "num": 8}
    protocol = {"measurement": {"n": 8}, "subject": {"steps": 2}, "figures": ["fid", "fid_std"]}
    summary = figures | {"protocol": protocol, "manifest": {"weights": "others"}}
    file = tmp_path / "summary.json"
    file.write_text(json.dumps(summary))
    given = record.Record(pixel_run), NAME, 2, "these"
    with pytest.raises(errors.UsageError, match="measured other weights"):
        card.facts(*given, evaluations=[file])
    summary["manifest"]["weights"] = "these"
    file.write_text(json.dumps(summary))
    text = card.text(card.facts(*given, evaluations=[file]))
    assert "| fid | 3.5 | 0.25 |" in text and "measurement.n: 8" in text
    assert "FID of samples" not in text and "value: 3.5" in text.split("---")[1]
    for own, good in (
        (dict(run=str(pixel_run), step=2), True),
        (dict(run=str(pixel_run), step=1), False),
        (dict(run=str(tmp_path), step=2), False),
        (dict(run=str(pixel_run), step=2, ema=[0.05]), False),
    ):
        file.write_text(json.dumps(figures | {"protocol": protocol} | own))
        if good:
            assert card.facts(*given, evaluations=[file])["evaluations"]
        else:
            with pytest.raises(errors.UsageError, match="measured other weights"):
                card.facts(*given, evaluations=[file])


def test_a_run_replaces_itself_and_touches_nothing_else(server, pixel_run, monkeypatch, capfd):
    server.repositories["somebody/pixels"] = {"README.md": b"mine", "pytorch_model.bin": b"mine"}
    before = dict(held(server))
    assert push(pixel_run) == 2 and held(server) == before
    server.repositories["somebody/pixels"] = {"ldm_jax/config.json": b"{}", "old.json": b"{}"}
    assert push(pixel_run) == 2 and "old.json" in held(server)
    assert "is public" in capfd.readouterr().err
    commit = fake_hub.Handler._commit
    monkeypatch.setattr(fake_hub.Handler, "_commit", lambda self, *_: self._error(403, "Forbidden"))
    assert push(pixel_run, NAME, "--public") == 2 and "old.json" in held(server)
    monkeypatch.setattr(fake_hub.Handler, "_commit", commit)
    assert push(pixel_run, NAME, "--public") == 0
    assert "old.json" not in held(server) and "README.md" in held(server)


@pytest.mark.parametrize(
    "name, token, said",
    [
        (NAME, "", "HF_TOKEN"),
        (NAME, "hf_another", "401"),
        ("somebody/pixels", fake_hub.TOKEN, "give hf:OWNER/NAME"),
        ("hf:pixels@main", fake_hub.TOKEN, "give hf:OWNER/NAME"),
    ],
)
def test_what_cannot_be_published_is_one_line(
    server, pixel_run, monkeypatch, refused, name, token, said
):
    monkeypatch.setenv("HF_TOKEN", token)
    assert said in refused(push(pixel_run, name))
    assert not server.repositories


def test_the_files_that_a_run_draws_by_go_with_it_and_names_stay_names(tmp_path):
    for name in ("t/vocab.json", "t/merges.txt", "w/model.safetensors", "words.txt", "own.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    given = {
        "text": dict(weights=str(tmp_path / "w"), tokenizer=str(tmp_path / "t")),
        "more": dict(weights=str(tmp_path / "own.pt"), tokenizer="clip:l14"),
    }
    config = ConfigDict(dict(conditioners=given, data=dict(vocabulary=str(tmp_path / "words.txt"))))
    out = tmp_path / "out"
    out.mkdir()
    publishing.copy_files(config, out)
    assert config.to_dict() == {
        "conditioners": {
            "text": dict(weights="text_weights", tokenizer="text_tokenizer"),
            "more": dict(weights="more_weights/own.pt", tokenizer="clip:l14"),
        },
        "data": dict(vocabulary="vocab.txt"),
    }
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    tokenizer = {f"text_tokenizer/{name}" for name in ("vocab.json", "merges.txt")}
    assert (
        found == {"vocab.txt", "text_weights/model.safetensors", "more_weights/own.pt"} | tokenizer
    )


def test_no_key_is_published(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "of another kind")
    for text in ("hf_" + "a1" * 12, "https://me:secret@host/x", "of another kind"):
        (tmp_path / "config.json").write_text(json.dumps({"data": {"name": text}}))
        with pytest.raises(errors.UsageError, match=r"config\.json.*looks like a key") as caught:
            publishing.check_secrets(tmp_path)
        assert text not in str(caught.value)
    (tmp_path / "config.json").write_text(json.dumps({"path": "https://host/x@main#sha256=12"}))
    publishing.check_secrets(tmp_path)


def test_what_is_no_published_run_is_refused(server, pixel_run, tmp_path, refused):
    server.repositories["them/pipe"] = {"model_index.json": b"{}"}
    for name, said in (("hf:them/pipe", "as a run"), ("hf:them/none", "404")):
        with pytest.raises(errors.UsageError, match=said):
            ldm_jax.load(name)
    argv = [f"--config={parity.ROOT}/configs/debug.py:first_stage", "--config.init_from=hf:a/b"]
    assert "hf:a/b" in refused(call(train, *argv, f"--workdir={tmp_path}/new"))
    assert not (tmp_path / "new").exists()
    assert "--out is missing" in refused(call(evaluate, "--run=hf:them/pipe"))
    # damage: of a file that was copied by hand
    params, step = checkpoint.read_params(pixel_run, ("denoiser",))
    (tmp_path / "config.json").write_bytes((pixel_run / "config.json").read_bytes())
    published.write(tmp_path, step, params)
    file = tmp_path / published.FILE
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    with pytest.raises(errors.UsageError, match="checksum"):
        checkpoint.read_params(tmp_path)
    assert kinds.of(record.read(tmp_path)).draws
