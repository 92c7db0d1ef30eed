"""Checkpoints in and out, through the command: golden numbers, strictness, hostile files."""

import collections
import io
import json
import os
import pathlib
import pickle
import shutil
import sys
import zipfile

import numpy as np
import pytest
import yaml

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import parity
import test_clip_run

from ldm_jax import convert
from ldm_jax.base import errors, tensorfile
from ldm_jax.weights import official_config

PIPELINE = "compvis/pipeline"


@pytest.fixture(scope="session")
def golden(tmp_path_factory):
    return parity.unpack(parity.ROOT / "tests" / "golden", tmp_path_factory.mktemp("golden"))


# The rest, which say the same of further widths and losses, wait for `-m slow`.
QUICK = (
    *("cond_", "disc_", "ldmbert", "kl_f2_linattn", "vq_f2", "unet_adm", "ddim_S10_concat"),
    *("vqmodel_ldm", "unet2d_ddpm_style", "unet2dcond_"),
    *("ema_", "loss_pieces", "dit"),
)
CASES = [
    pytest.param(name, marks=() if name.startswith(QUICK) else pytest.mark.slow)
    for name in parity.cases(parity.ROOT / "tests" / "golden")
]


@pytest.mark.parametrize("name", CASES)
def test_official_numbers_are_reproduced(golden, name):
    rows = parity.measure(golden, name)
    assert rows
    over = [row for row in rows if not row[2] <= row[3]]
    assert not over, over


def test_checkpoints_of_every_container_read_the_same(golden):
    want = dict(np.load(golden / PIPELINE / "container_expected.npz"))
    for name in (
        "lightning_callbacks.ckpt",
        "lightning_callbacks_legacy.ckpt",
        "bare_state_dict.pth",
    ):
        state = tensorfile.read(golden / PIPELINE / f"container_{name}")
        assert set(want) <= set(state)
        for key, array in want.items():
            np.testing.assert_array_equal(state[key].astype(array.dtype), array)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.what = function, args

    def __reduce__(self):
        return self.what


def as_checkpoint(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
    return path


@pytest.mark.parametrize(
    "content, name",
    [
        (Call(os.system, "touch PWNED"), "posix.system"),
        ({"state_dict": Call(eval, "1")}, "eval"),
        ({"state_dict": {}, "callbacks": {pathlib.PurePosixPath: 1}}, "PurePosixPath"),
    ],
)
def test_a_pickle_that_calls_is_refused_by_name(tmp_path, monkeypatch, content, name, capsys):
    monkeypatch.chdir(tmp_path)
    path = as_checkpoint(tmp_path / "model.ckpt", content)
    (tmp_path / "model.yaml").write_text(json.dumps({"model": {"target": "VQModel"}}))
    argv = ["compvis", "--config=model.yaml", f"--checkpoint={path}", "--out=run"]
    assert convert.run(argv) == 2
    said = capsys.readouterr().err
    assert name in said and "refused" in said and said.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.ckpt", "model.yaml"]


def test_tensors_cannot_reach_beyond_their_storage():
    flat = np.arange(6.0)
    assert tensorfile._tensor(flat, 1, (2, 2), (2, 1)).tolist() == [[1, 2], [3, 4]]
    for offset, size, stride in (
        (0, (7,), (1,)),
        (5, (2,), (1,)),
        (0, (2,), (-1,)),
        (-1, (1,), (1,)),
    ):
        with pytest.raises(ValueError, match="beyond"):
            tensorfile._tensor(flat, offset, size, stride)


def test_placeholders_cannot_be_called():
    reader = tensorfile._Unpickler(io.BytesIO(), None)
    with pytest.raises(errors.UsageError, match=r"pytorch_lightning\.x\.Y"):
        reader.find_class("pytorch_lightning.x", "Y")()
    assert reader.find_class("collections", "OrderedDict") is collections.OrderedDict


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
def test_a_damaged_file_is_one_line_and_leaves_no_run(golden, tmp_path, damage, capsys):
    source = golden / PIPELINE / "autoencoder_with_loss_keys"
    data = bytearray(source.with_suffix(".ckpt").read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    data = {"truncated": data[: len(data) // 2], "empty": b"", "text": b"hello"}.get(damage, data)
    (tmp_path / "model.ckpt").write_bytes(data)
    argv = ["compvis", f"--config={source}.yaml", f"--checkpoint={tmp_path}/model.ckpt"]
    assert convert.run([*argv, f"--out={tmp_path}/run"]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["model.ckpt"]


def safetensors(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(start, stop, *shape):
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": entry(0, 8, 2), "b": entry(4, 12, 2)}, "invalid offset for tensor `b`"),
        ({"a": entry(0, 16, 4)}, "file not fully covered"),
        ({"a": entry(8, 4, -1)}, "cannot be read"),
        ({"a": entry(0, 12, 2**40, 2**40)}, "cannot be read"),
        ({"a": entry(0, 12, -1, -3)}, "cannot be read"),
        ({"a": entry(0, 12, 12) | {"dtype": "F8_E4M3"}}, "a is of dtype F8_E4M3; known: F64"),
        ({"a": 3}, "cannot be read"),
        ([1], "cannot be read"),
        (b"{" * 5000, "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_safetensors_file_cannot_lie(tmp_path, header, words):
    safetensors(tmp_path / "a.safetensors", header, bytes(12))
    with pytest.raises(errors.UsageError, match=words):
        tensorfile.read(tmp_path / "a.safetensors")


def test_a_header_longer_than_its_file_is_not_awaited(tmp_path):
    (tmp_path / "a.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(errors.UsageError, match="header too large"):
        tensorfile.read(tmp_path / "a.safetensors")


def test_names_in_an_archive_reach_nothing(tmp_path, monkeypatch):
    """Members are read in memory: a name that climbs out of its folder is a name like any other."""
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    with zipfile.ZipFile("model.ckpt", "w") as archive:
        archive.writestr("../../x/data.pkl", pickle.dumps({"a": 1}, protocol=2))
        archive.writestr("../escaped", "!")
    with pytest.raises(errors.UsageError, match="holds no tensors"):
        tensorfile.read("model.ckpt")
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "model.ckpt"]


class Pickled:
    """A torch file by hand: a tensor of any size, on a storage that is said to be of any size."""

    def __init__(self, count, size):
        self.count, self.size = count, size

    def write(self, path):
        code = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(("
        code += b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
        code += b"X\x03\x00\x00\x00cpu" + pickle.dumps(self.count, 2)[2:-1] + b"tQK\x00"
        code += pickle.dumps((self.size,), 2)[2:-1] + pickle.dumps((1,), 2)[2:-1]
        code += b"\x89ccollections\nOrderedDict\n)RtRs."
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", code)
            archive.writestr("a/data/0", bytes(16))
        return path


def test_a_tensor_is_as_large_as_its_storage_at_most(tmp_path):
    fits = tensorfile.read(Pickled(4, 4).write(tmp_path / "fits.ckpt"))
    assert fits["a"].tolist() == [0, 0, 0, 0]
    for count, size in ((4, 5), (2**40, 2**40), (4, 2**62), (-1, 4)):
        with pytest.raises(errors.UsageError, match="cannot be read"):
            tensorfile.read(Pickled(count, size).write(tmp_path / "model.ckpt"))


def test_compressed_members_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, protocol=2))
    with pytest.raises(errors.UsageError, match="compressed"):
        tensorfile.read(tmp_path / "a.ckpt")


def test_weights_that_are_not_finite_are_refused_by_name(golden, tmp_path, capsys):
    source = golden / PIPELINE / "autoencoder_with_loss_keys"
    state = dict(tensorfile.read(source.with_suffix(".ckpt")))
    state["quant_conv.bias"] = np.full_like(state["quant_conv.bias"], np.nan)
    np.savez(tmp_path / "model.npz", **state)
    argv = [f"--config={source}.yaml", f"--checkpoint={tmp_path}/model.npz"]
    assert convert.run(["compvis", *argv, f"--out={tmp_path}/run"]) == 2
    assert "not finite: quant_conv.bias" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]


@pytest.mark.parametrize(
    "model",
    [
        {"target": "AutoencoderKL", "params": {}},
        {"target": "AutoencoderKL", "params": {"ddconfig": {"ch": "wide"}}},
        {"target": "LatentDiffusion", "params": {"unet_config": 3}},
        {"target": 5},
    ],
)
def test_a_yaml_without_its_keys_is_one_line(golden, tmp_path, model, capsys):
    source = golden / PIPELINE / "autoencoder_with_loss_keys"
    (tmp_path / "model.yaml").write_text(json.dumps({"model": model}))
    argv = [f"--config={tmp_path}/model.yaml", f"--checkpoint={source}.ckpt"]
    assert convert.run(["compvis", *argv, f"--out={tmp_path}/run"]) == 2
    said = capsys.readouterr().err
    assert "cannot be understood" in said and said.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["model.yaml"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "{}"),
        ("config.json", "[]"),
        ("config.json", '{"_class_name": "VQModel"}'),
        ("diffusion_pytorch_model.safetensors.index.json", "{}"),
        (
            "diffusion_pytorch_model.safetensors.index.json",
            '{"weight_map": {"a": "../../secret.safetensors"}}',
        ),
    ],
)
def test_a_broken_folder_is_one_line(golden, tmp_path, name, text, capsys):
    folder = shutil.copytree(golden / "diffusers" / "vqmodel_ldm", tmp_path / "model")
    (folder / name).write_text(text)
    safetensors(tmp_path / "secret.safetensors", {"a": entry(0, 4, 1)}, bytes(4))
    assert convert.run(["diffusers", f"--checkpoint={folder}", f"--out={tmp_path}/run"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "ldm_jax: " in said
    assert not (tmp_path / "run").exists()


def test_a_wrong_yaml_names_keys_and_shapes(golden, tmp_path, capsys):
    source = golden / PIPELINE / "autoencoder_with_loss_keys"
    yaml = tmp_path / "wrong.yaml"
    yaml.write_text(source.with_suffix(".yaml").read_text().replace("embed_dim: 3", "embed_dim: 4"))
    argv = ["compvis", f"--checkpoint={source}.ckpt", f"--out={tmp_path}/run"]
    assert convert.run([*argv, f"--config={yaml}"]) == 2
    assert "quant_conv.weight makes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_exported_first_stage_comes_back_the_same(golden, tmp_path):
    source = golden / "diffusers" / "vqmodel_ldm"
    assert convert.run(["diffusers", f"--checkpoint={source}", f"--out={tmp_path}/run"]) == 0
    assert convert.run(["export", f"--run={tmp_path}/run", f"--out={tmp_path}/out"]) == 0
    name = "diffusion_pytorch_model.safetensors"
    ours, theirs = (tensorfile.read(folder / name) for folder in (tmp_path / "out", source))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    written, given = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", source)
    )
    same = written.keys() - {"_diffusers_version", "sample_size", "scaling_factor"}
    assert {k: written[k] for k in same} == {k: given[k] for k in same}


@pytest.mark.slow
def test_a_converted_run_may_move(golden, tmp_path):
    import ldm_jax

    source = golden / PIPELINE / "txt2img"
    argv = ["compvis", f"--config={source}.yaml", f"--checkpoint={source}.ckpt"]
    assert convert.run([*argv, f"--out={tmp_path}/a"]) == 0
    shutil.move(tmp_path / "a", tmp_path / "b")
    run = ldm_jax.load(tmp_path / "b")
    assert run.encode(np.zeros((1, 32, 32, 3))).shape == (1, 8, 8, 4)


@pytest.mark.slow
def test_a_checkpoint_that_holds_clip_takes_prompts(golden, tmp_path, capsys):
    """As Stable Diffusion v1's do; its vocabulary is not in the checkpoint."""
    import ldm_jax
    from ldm_jax.models import clip
    from ldm_jax.runs import conditions as conditions_of
    from ldm_jax.weights.clip import from_state

    config = yaml.safe_load((golden / PIPELINE / "txt2img.yaml").read_text())
    config["model"]["params"]["cond_stage_config"] = {
        "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"
    }
    (tmp_path / "sd.yaml").write_text(yaml.safe_dump(config))
    test_clip_run.write_vocabulary(tmp_path)
    weights = test_clip_run.random_weights(seed=0, width=32)
    prefix = "cond_stage_model.transformer.text_model."
    state = tensorfile.read(golden / PIPELINE / "txt2img.ckpt")
    state = {k: v for k, v in state.items() if not k.startswith("cond_stage_model.")}
    bare = {k: v for k, v in state.items() if isinstance(v, np.ndarray)}
    held = bare | {prefix + k: v for k, v in weights.items()}
    np.savez(tmp_path / "sd.npz", **held)
    np.savez(tmp_path / "without.npz", **bare)

    argv = ["compvis", f"--config={tmp_path}/sd.yaml"]
    argv_of = lambda name, out: [*argv, f"--checkpoint={tmp_path}/{name}.npz", f"--out={out}"]
    assert convert.run(argv_of("sd", tmp_path / "tokens")) == 0
    assert "--tokenizer=FOLDER" in capsys.readouterr().out
    assert convert.run([*argv_of("without", tmp_path / "no"), f"--tokenizer={tmp_path}"]) == 2
    assert "has no CLIP text encoder" in capsys.readouterr().err
    assert convert.run([*argv_of("sd", tmp_path / "run"), f"--tokenizer={tmp_path}"]) == 0

    ready, run = (ldm_jax.load(tmp_path / name) for name in ("tokens", "run"))
    ids = conditions_of.make(run.config).of_prompts(["a red circle", ""])
    sizes = dict(vocab_size=514, length=20, width=32, depth=1, heads=1)
    encoder = clip.ClipText(**sizes).encoder()
    states = encoder.apply({"params": from_state(weights, depth=1)}, ids["clip_ids"])
    how = dict(steps=2, guidance=1.0, noise=np.ones((2, 8, 8, 4), np.float32))
    want = ready.sample(2, cond={"tokens": states}, **how)
    np.testing.assert_allclose(run.sample(2, cond=ids, **how), want, atol=1e-5)


@pytest.mark.parametrize(
    "net, want",
    [
        (dict(num_heads=8, legacy=False), (8, None, None)),
        (dict(num_head_channels=32, use_spatial_transformer=True), (None, 32, None)),
        (dict(num_heads=4, num_heads_upsample=2), (4, None, 2)),
        (dict(num_heads=4, num_heads_upsample=2, legacy=False), (4, None, None)),
    ],
)
def test_heads_are_those_of_the_official_code_unless_overruled(net, want):
    assert tuple(official_config.heads_of(net).values()) == want
    assert tuple(official_config.heads_of(net, heads=1).values()) == (1, None, None)
