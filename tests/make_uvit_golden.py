"""Writes tests/golden/uvit.json: what the official U-ViT computes.

    git clone https://github.com/baofff/U-ViT
    pip install torch einops
    PYTHONPATH=U-ViT python tests/make_uvit_golden.py

The weights are not kept: `filled` makes them anew of the names and shapes in the file.
"""

import json
import pathlib

import numpy as np
from make_control_golden import filled

FILE = pathlib.Path(__file__).resolve().parent / "golden" / "uvit.json"
COMMON = dict(img_size=8, patch_size=2, in_chans=4, embed_dim=16, num_heads=2)
CASES = {
    "classes": COMMON | dict(depth=4, num_classes=6),  # the last is the null class
    "unconditional": COMMON | dict(depth=2, mlp_time_embed=True, conv=False),
}
T, IDS = (3, 700), (4, 5)  # T counts from 0


def given() -> np.ndarray:
    """x [2, 8, 8, 4]."""
    return np.random.RandomState(0).standard_normal((2, 8, 8, 4)).astype(np.float32)


def main():
    import torch
    from libs.uvit import UViT

    found = {}
    for name, about in CASES.items():
        net = UViT(**about).eval()
        shapes = {key: tuple(x.shape) for key, x in net.state_dict().items()}
        net.load_state_dict({k: torch.from_numpy(x) for k, x in filled(name, shapes).items()})
        x, t = torch.from_numpy(given()).movedim(-1, 1).contiguous(), torch.tensor(T) + 1
        ids = torch.tensor(IDS) if "num_classes" in about else None
        with torch.no_grad():
            out = net(x, t, ids).movedim(1, -1)
        found[name] = dict(shapes={k: list(s) for k, s in shapes.items()}, out=out.tolist())
    FILE.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
