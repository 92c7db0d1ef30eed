"""Files of low-rank updates, without diffusers: out, back in, in kohya's names, and rubbish."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ldm_jax.base import errors
from ldm_jax.weights import lora

MODEL = dict(name="unet", mult=(1, 2), blocks=1, cross_attention=True, transformer_depth=1)
SHAPES = {  # of a kernel, and what its layer is called there
    "unet/down_0_block_0/conv_1/kernel": ((3, 3, 4, 6), "down_blocks.0.resnets.0.conv1"),
    "unet/up_1_block_0/skip/kernel": ((4, 6), "up_blocks.0.resnets.0.conv_shortcut"),
    "unet/mid_attn/proj_in/kernel": ((4, 6), "mid_block.attentions.0.proj_in"),
    "unet/mid_attn/block_0/self_attn/out/kernel": (
        (4, 6),
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
    ),
}


def random(ranks):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return {
        path: (draw(*shape[:-1], rank), draw(rank, shape[-1]))
        for (path, (shape, _)), rank in zip(SHAPES.items(), ranks)
    }


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for path, arrays in wanted.items():
        for a, b in zip(found[path], arrays, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture
def written(tmp_path):
    updates = random((2, 2, 2, 2))
    lora.write(tmp_path, MODEL, updates)
    return tmp_path / lora.FILE, updates


def test_a_file_has_their_names_and_shapes_and_comes_back_the_same(written):
    file, updates = written
    shapes = {key: array.shape for key, array in load_file(file).items()}
    for layer in (name for _, name in SHAPES.values()):
        assert {f"unet.{layer}.lora_A.weight", f"unet.{layer}.lora_B.weight"} <= shapes.keys()
    conv, skip = (f"unet.{SHAPES[path][1]}" for path in list(SHAPES)[:2])
    assert shapes[f"{conv}.lora_A.weight"] == (2, 4, 3, 3)
    assert shapes[f"{conv}.lora_B.weight"] == (6, 2, 1, 1)
    assert shapes[f"{skip}.lora_A.weight"] == (2, 4, 1, 1)
    same(lora.read(file, MODEL), updates)


def test_kohyas_names_and_its_alpha_over_the_rank_are_understood(written, tmp_path):
    file, updates = written
    state = {}
    for key, array in load_file(file).items():
        layer, part = key.removeprefix("unet.").removesuffix(".weight").rsplit(".lora_", 1)
        name = f"lora_unet_{layer.replace('.', '_')}"
        state[f"{name}.{dict(A='lora_down', B='lora_up')[part]}.weight"] = array
        state[f"{name}.alpha"] = np.array(1.0, np.float32)
    save_file(state, tmp_path / "kohya.safetensors")
    half = {path: (a, 0.5 * b) for path, (a, b) in updates.items()}
    same(lora.read(tmp_path / "kohya.safetensors", MODEL), half)

    text = state | {"lora_te_text_model_encoder.alpha": np.array(1.0, np.float32)}
    save_file(text, tmp_path / "text.safetensors")
    with pytest.raises(errors.UsageError, match="--unet_only"):
        lora.read(tmp_path / "text.safetensors", MODEL)
    same(lora.read(tmp_path / "text.safetensors", MODEL, unet_only=True), half)


def test_ranks_are_filled_up_with_zeros_which_change_nothing():
    updates = random((2, 3, 1, 3))
    wide, rank = lora.padded(updates)
    assert rank == 3 and {b.shape[0] for _, b in wide.values()} == {3}
    for path, (a, b) in updates.items():
        np.testing.assert_array_equal(np.matmul(*wide[path]), np.matmul(a, b))


def test_targets_of_a_file_are_brief_where_they_can_be():
    kernels = [f"unet/down_{i}_attn_0/block_0/{x}/kernel" for i in (0, 1) for x in ("q", "k")]
    kernels += ["unet/conv_in/kernel"]
    assert lora.targets(kernels[:4:2], kernels) == ("/q/kernel$",)
    assert lora.targets(kernels[:1], kernels) == (f"^{kernels[0]}$",)
    assert lora.targets(kernels[4:], kernels) == ("unet/conv_in/kernel$",)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda s: s | {"unet.conv_in.hada_w1_a": np.ones(2, np.float32)}, "conv_in.hada_w1_a"),
        (lambda s: dict(list(s.items())[1:]), "lacks one of its two arrays"),
        (lambda s: {k.replace("mid_block", "middle"): v for k, v in s.items()}, "no rule knows"),
        (lambda s: s | {k: v * np.nan for k, v in s.items()}, "not finite"),
        (lambda s: {k: v[:1] for k, v in s.items()}, "which make no update"),
        (lambda s: {}, "no tensors"),
    ],
)
def test_another_file_is_refused_by_name(written, tmp_path, change, line):
    save_file(change(load_file(written[0])), tmp_path / "other.safetensors")
    with pytest.raises(errors.UsageError, match=line) as e:
        lora.read(tmp_path / "other.safetensors", MODEL)
    assert "other.safetensors" in str(e.value)


def test_what_diffusers_has_no_updates_of_is_refused(tmp_path):
    text = {"conditioners_text/transformer/block_0/attn/q/kernel": (np.ones((2, 1)),) * 2}
    for model, updates, line in (
        (MODEL, text, "adapt the UNet alone"),
        (MODEL | {"cross_attention": False}, {}, "UNets with cross-attention"),
        (dict(name="dit"), {}, "UNets with cross-attention"),
    ):
        with pytest.raises(errors.UsageError, match=line):
            lora.write(tmp_path, model, updates)
    assert not (tmp_path / lora.FILE).exists()
