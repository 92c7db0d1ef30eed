"""Writes tests/golden/control.json: what diffusers' UNet computes with a ControlNetModel.

    pip install torch diffusers
    python tests/make_control_golden.py

The weights are not kept: `filled` makes them anew of the names and shapes in the file.
"""

import json
import pathlib
import zlib

import numpy as np

FILE = pathlib.Path(__file__).resolve().parent / "golden" / "control.json"
COMMON = dict(
    in_channels=2,
    block_out_channels=(16, 32),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    layers_per_block=1,
    cross_attention_dim=12,
    attention_head_dim=(2, 4),
    norm_num_groups=8,
)
UNET = COMMON | dict(
    out_channels=2, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), sample_size=8
)
CONTROL = COMMON | dict(conditioning_embedding_out_channels=(4, 6))  # hints are halved once
SCALES = (1.0, 0.7)
T = (3, 700)


def filled(name: str, shapes: dict) -> dict:
    """{key: array} of these shapes, none of them zero; the same for the same names always."""
    found = {}
    for key, shape in shapes.items():
        rng = np.random.RandomState(zlib.crc32(f"{name} {key}".encode()))  # which never changes
        spread = 1 / np.prod(shape[1:]) ** 0.5 if len(shape) > 1 else 0.3
        found[key] = (spread * rng.standard_normal(shape)).astype(np.float32)
    return found


def given() -> dict:
    """x [2, 8, 8, 2], tokens [2, 5, 12], and the hint [2, 16, 16, 3] in [0, 1]."""
    shapes = {"x": (2, 8, 8, 2), "tokens": (2, 5, 12), "hint": (2, 16, 16, 3)}
    rng = np.random.RandomState(0)
    found = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return found | {"hint": np.abs(found["hint"]) / 4}


def computed(unet, control, scale: float, hint) -> np.ndarray:
    """Their output [2, 8, 8, 2] for `given`, with the ControlNet so many times."""
    import torch

    tensor = lambda x: torch.from_numpy(np.asarray(x))
    first = lambda x: tensor(x).movedim(-1, 1).contiguous()
    fields = given()
    x, tokens, t = first(fields["x"]), tensor(fields["tokens"]), torch.tensor(T)
    with torch.no_grad():
        how = dict(conditioning_scale=scale, return_dict=False)
        down, middle = control(x, t, tokens, controlnet_cond=first(hint), **how)
        skips = dict(down_block_additional_residuals=down, mid_block_additional_residual=middle)
        return unet(x, t, tokens, **skips).sample.movedim(1, -1).numpy()


def networks() -> dict:
    """{name: a network of diffusers'}, filled."""
    import diffusers
    import torch

    unet, control = diffusers.UNet2DConditionModel(**UNET), diffusers.ControlNetModel(**CONTROL)
    for name, net in dict(unet=unet, control=control).items():
        own = filled(name, {key: tuple(x.shape) for key, x in net.state_dict().items()})
        net.load_state_dict({key: torch.from_numpy(x) for key, x in own.items()})
        net.eval()
    return dict(unet=unet, control=control)


def main():
    nets = networks()
    found = {
        name: {
            "config": {k: v for k, v in net.config.items() if not k.startswith("_")}
            | {"_class_name": type(net).__name__},
            "shapes": {key: list(x.shape) for key, x in net.state_dict().items()},
        }
        for name, net in nets.items()
    }
    hint = given()["hint"]
    out = {str(scale): computed(*nets.values(), scale, hint).tolist() for scale in SCALES}
    FILE.write_text(json.dumps(found | {"out": out}) + "\n")


if __name__ == "__main__":
    main()
