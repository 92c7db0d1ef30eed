"""Low-rank updates of a UNet as files of diffusers (PEFT's keys) and of kohya's scripts.

    unet.LAYER.lora_A.weight, unet.LAYER.lora_B.weight           diffusers', written and read
    unet.LAYER.lora.down.weight, unet.LAYER.lora.up.weight       of older diffusers, read
    lora_unet_LAYER.lora_down.weight, .lora_up.weight, .alpha    kohya's, read; `_` for `.`

LAYER is diffusers' name of a layer of UNet2DConditionModel. In such a network no kernel of ours
holds several layers of diffusers', so that each update is one of theirs, in both directions.
"""

import re

import numpy as np
from flax import traverse_util

from ldm_jax.base import errors, tensorfile
from ldm_jax.weights import diffusers, rules

FILE = "pytorch_lora_weights.safetensors"
LOADER = "load_lora_weights of a pipeline of diffusers"
KOHYA = "lora_unet_"
_PART = re.compile(
    r"(.+?)\.(lora_A|lora_B|lora\.down|lora\.up|lora_down|lora_up|alpha)(?:\.weight)?"
)
_DOWN, _UP = ("lora_A", "lora.down", "lora_down"), ("lora_B", "lora.up", "lora_up")
_TEXT = ("text_encoder", "lora_te")  # how keys of a text encoder's updates begin


def write(folder, model: dict, updates: dict):
    """Writes `folder`/FILE. model: our config.model; updates: {path of a kernel: (A, B)}.

    Raises:
      UsageError: diffusers has no such network, or an update is of something else.
    """
    from safetensors.numpy import save_file

    table, state = _table(model), {}
    if others := sorted(path for path in updates if not path.startswith("unet/")):
        raise errors.UsageError(
            f"{others[0]} is adapted, which diffusers has no updates for: adapt the UNet alone "
            "(config.adapt.targets=unet/.*attn), or export the merged run (convert merge)."
        )
    for i, name in enumerate(("lora_A", "lora_B")):
        arrays = {tuple(path.split("/")): update[i] for path, update in updates.items()}
        own = rules.export(traverse_util.unflatten_dict(arrays), table if i == 0 else _maps(table))
        state |= {f"unet.{k.removesuffix('.weight')}.{name}.weight": v for k, v in own.items()}
    save_file(state, folder / FILE, metadata={"format": "pt", "converted_by": "ldm_jax"})


def read(file, model: dict, unet_only: bool = False) -> dict:
    """{path of a kernel of ours: (A, B)}, B with the file's alpha / rank in it.

    unet_only: leave a text encoder's updates out, which are refused otherwise.
    """
    table, layers = _table(model), {}
    kohya = {rule.key.replace(".", "_"): rule.key for rule in table}
    for key, array in tensorfile.read(file).items():
        if key.startswith(_TEXT):
            if unet_only:
                continue
            raise errors.UsageError(
                f"{file} changes the text encoder, too ({key}), which our runs keep as it is: "
                "--unet_only takes the rest, whose pictures then differ."
            )
        if not (match := _PART.fullmatch(key)):
            raise errors.UsageError(f"{file}: {key} is of no low-rank update that is known.")
        name, part = match.groups()
        own = name.removeprefix(KOHYA)
        name = name.removeprefix("unet.") if own == name else kohya.get(own, own)
        layers.setdefault(name, {})["A" if part in _DOWN else "B" if part in _UP else part] = array
    for name, parts in layers.items():
        if not {"A", "B"} <= parts.keys():
            raise errors.UsageError(f"{file}: the update of {name} lacks one of its two arrays.")
        shapes = parts["A"].shape, parts["B"].shape
        if min(map(len, shapes)) < 2 or shapes[0][0] != shapes[1][1]:
            raise errors.UsageError(
                f"{file}: the arrays of {name} have shapes {shapes[0]} and {shapes[1]}, which make "
                "no update."
            )
    found = []
    for part, own in (("A", table), ("B", _maps(table))):
        state = {f"{name}.weight": parts[part] for name, parts in layers.items()}
        with errors.of(str(file)):
            found.append(traverse_util.flatten_dict(rules.convert(state, own), sep="/"))
    factors = {
        name: float(parts["alpha"]) / parts["A"].shape[0] if "alpha" in parts else 1.0
        for name, parts in layers.items()
    }
    ours = {rule.path + "/kernel": factors.get(rule.key, 1.0) for rule in table}
    return {path: (a, np.float32(ours[path]) * found[1][path]) for path, a in found[0].items()}


def padded(updates: dict) -> tuple[dict, int]:
    """The updates at the largest of their ranks, and that; what is added is zero and does nothing.

    An array of zeros is given to A and to B alike, which training then leaves as it is.
    """
    rank = max(b.shape[-2] for _, b in updates.values())
    more = lambda x, axis: [(0, rank - x.shape[i] if i == axis else 0) for i in range(x.ndim)]
    wide = lambda a, b: (np.pad(a, more(a, a.ndim - 1)), np.pad(b, more(b, b.ndim - 2)))
    return {path: wide(*update) for path, update in updates.items()}, rank


def targets(paths, kernels) -> tuple[str, ...]:
    """Regexes that are found in these paths, and in no others of `kernels`.

    One for each kind of layer where all layers of these kinds are meant, else one for each path.
    """
    kind = lambda path: re.sub(r"^unet/[^/]+/(block_\d+/)?(?=[^/]+/)", "/", path)
    kinds = sorted({kind(path) for path in paths})
    found = lambda regexes: {k for k in kernels if any(re.search(regex, k) for regex in regexes)}
    brief = tuple(f"{one}$" for one in kinds)
    return brief if found(brief) == set(paths) else tuple(f"^{path}$" for path in sorted(paths))


def _table(model: dict) -> list[rules.Rule]:
    if model.get("name") != "unet" or not model.get("cross_attention"):
        raise errors.UsageError(
            "diffusers and kohya's scripts have low-rank updates of UNets with cross-attention "
            "alone (config.model.cross_attention); merge this run's (convert merge) instead."
        )
    return diffusers.unet_table(model)


def _maps(table) -> list[rules.Rule]:
    """The table of B: of a convolution it is a map of channels, 1x1."""
    return [rule._replace(kind="1x1") if rule.kind == "conv" else rule for rule in table]
