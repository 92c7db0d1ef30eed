"""Writes tests/golden/metrics: what torch-fidelity, pytorch-fid, clean-fid, prdc and transformers
compute.

    pip install torch torchvision torch-fidelity pytorch-fid prdc scipy transformers
    pip install --no-deps clean-fid    # one of its files is read
    python tests/make_metrics_golden.py

Development only. The tests make the same inputs with the functions of this file, which import
nothing but numpy, and compare with the numbers that lie in the repository.
"""

import json
import pathlib

import numpy as np

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden" / "metrics"
CASES = {"many": (300, 260, 24), "fewer_than_features": (70, 64, 96)}  # fake, real, d
KID = dict(subsets=10, subset_size=50)
SPLITS = 5
SIDE = 139  # smaller than 299, and the last blocks are still 3x3
TAPS = 24  # values kept of every layer
# A ViT of the style of DINOv2's, with its grid of positions, and a CLIP: two layers of two heads.
DINOV2 = dict(width=128, depth=2, patch=14, grid=37)
CLIP = dict(width=128, depth=2, patch=32, grid=7, dimension=32, vocabulary=300, length=77)
EMBEDDED = (30, 41)  # an image that is not square
CLOUDS = (90, 70, 48)  # unit vectors: fake, real, d
RESIZED = {"up": (37, 50), "down": (320, 301), "same": (299, 299)}


def features(case):
    """(fake, real), float64: two clouds that overlap in part."""
    fake, real, d = CASES[case]
    rng = np.random.RandomState(7)
    basis = rng.normal(size=(d, d)) / np.sqrt(d)
    make = lambda n, shift: (rng.normal(size=(n, d)) @ basis + shift).clip(-1)
    return make(fake, 0.2), make(real, 0.0)


def logits():
    """[210, 40] float64."""
    return 3.0 * np.random.RandomState(8).normal(size=(210, 40))


def pixels(height, width, n=1):
    """uint8 [n, h, w, 3]."""
    return np.random.RandomState(9).randint(0, 256, (n, height, width, 3)).astype(np.uint8)


def inception_state(shapes):
    """Random weights for {key: shape}, in the order of their names, that keep the variance."""
    rng, state = np.random.RandomState(10), {}
    for key in sorted(shapes):
        shape = shapes[key]
        if key.endswith("num_batches_tracked"):
            continue
        if key.endswith(("running_var", "bn.weight")):
            state[key] = rng.uniform(0.8, 1.2, shape)
        elif len(shape) > 1:
            state[key] = rng.normal(size=shape) * np.sqrt(2.0 / np.prod(shape[1:]))
        else:
            state[key] = 0.1 * rng.normal(size=shape)
        state[key] = state[key].astype(np.float32)
    return state


def dinov2_state():
    """Random weights under the names of Meta's files."""
    d, shapes = DINOV2["width"], {"cls_token": (1, 1, DINOV2["width"])}
    shapes |= {"mask_token": (1, d), "pos_embed": (1, 1 + DINOV2["grid"] ** 2, d)}
    shapes |= _layer("patch_embed.proj", d, (3, DINOV2["patch"], DINOV2["patch"])) | _norm(
        "norm", d
    )
    for i in range(DINOV2["depth"]):
        at = f"blocks.{i}"
        shapes |= _norm(f"{at}.norm1", d) | _norm(f"{at}.norm2", d)
        shapes |= _layer(f"{at}.attn.qkv", 3 * d, (d,)) | _layer(f"{at}.attn.proj", d, (d,))
        shapes |= _layer(f"{at}.mlp.fc1", 4 * d, (d,)) | _layer(f"{at}.mlp.fc2", d, (4 * d,))
        shapes |= {f"{at}.ls1.gamma": (d,), f"{at}.ls2.gamma": (d,)}
    return _transformer_state(shapes)


def clip_state():
    """Random weights of both sides under the names of Hugging Face's files."""
    d, dimension, shapes = CLIP["width"], CLIP["dimension"], {"logit_scale": ()}
    for side in ("text_model", "vision_model"):
        for i in range(CLIP["depth"]):
            at = f"{side}.encoder.layers.{i}"
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes |= _layer(f"{at}.self_attn.{name}", d, (d,))
            shapes |= _layer(f"{at}.mlp.fc1", 4 * d, (d,)) | _layer(f"{at}.mlp.fc2", d, (4 * d,))
            shapes |= _norm(f"{at}.layer_norm1", d) | _norm(f"{at}.layer_norm2", d)
    at = "vision_model.embeddings"
    patch = (d, 3, CLIP["patch"], CLIP["patch"])
    shapes |= {f"{at}.class_embedding": (d,), f"{at}.patch_embedding.weight": patch}
    shapes[f"{at}.position_embedding.weight"] = (1 + CLIP["grid"] ** 2, d)
    shapes |= _norm("vision_model.pre_layrnorm", d) | _norm("vision_model.post_layernorm", d)
    at = "text_model.embeddings"
    shapes[f"{at}.token_embedding.weight"] = (CLIP["vocabulary"], d)
    shapes[f"{at}.position_embedding.weight"] = (CLIP["length"], d)
    shapes |= _norm("text_model.final_layer_norm", d)
    shapes |= {f"{side}_projection.weight": (dimension, d) for side in ("text", "visual")}
    return _transformer_state(shapes)


def caption_ids():
    """Captions of 3 and 77 tokens; the last id ends them, and zeros come behind."""
    ids = np.zeros((2, CLIP["length"]), np.int64)
    ids[1] = np.random.RandomState(12).randint(0, CLIP["vocabulary"] - 2, CLIP["length"])
    ids[:, 0], ids[0, 1], ids[0, 2], ids[1, -1] = 298, 17, 299, 299
    return ids


def unit_vectors():
    """(fake, real), float64 [n, d] of length 1."""
    fake, real, d = CLOUDS
    rng = np.random.RandomState(13)
    clouds = rng.normal(size=(fake, d)) + 0.3, rng.normal(size=(real, d))
    return [x / np.linalg.norm(x, axis=1, keepdims=True) for x in clouds]


def _layer(name, width, inputs):
    return {f"{name}.weight": (width, *inputs), f"{name}.bias": (width,)}


def _norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _transformer_state(shapes):
    """Weights that let every part of a transformer show in what comes out."""
    rng, state = np.random.RandomState(11), {}
    for key in sorted(shapes):
        shape = shapes[key]
        embedding = any(word in key for word in ("embedding.weight", "cls_token", "pos_embed"))
        if len(shape) < 2 and key.endswith(("weight", "gamma")):
            value = rng.uniform(0.5, 1.5, shape)
        elif len(shape) < 2 or (embedding and "patch" not in key):
            value = 0.3 * rng.normal(size=shape)
        else:
            value = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        state[key] = np.asarray(value, np.float32)
    return state


def save_mobilenet(path):
    """Random MobileNetV2 weights in the layout of the published file, whose indices have gaps."""
    # widths of the 17 blocks, as published (Sandler et al. 2018, table 2)
    widths = [16] + [24] * 2 + [32] * 3 + [64] * 4 + [96] * 3 + [160] * 3 + [320]
    rng = np.random.default_rng(0)
    shapes, width = [(32, 3, 3, 3)], 32
    for i, out in enumerate(widths):
        inner = width if i == 0 else 6 * width
        shapes += [(inner, width, 1, 1)] * (i > 0) + [(inner, 1, 3, 3), (out, inner, 1, 1)]
        width = out
    shapes.append((1280, width, 1, 1))
    arrays = {}
    for i, shape in enumerate(shapes):
        gain = np.sqrt(2.0 / np.prod(shape[1:]))
        arrays[f"conv_{2 * i}_weight"] = (gain * rng.normal(size=shape)).astype(np.float32)
        arrays[f"conv_{2 * i}_bias"] = rng.normal(size=shape[0]).astype(np.float32)
    np.savez(path, **arrays)
    return path


def tap(x):
    """A few values of a layer [h, w, c] or [c], spread over it, then its mean and its scale."""
    flat = np.asarray(x, np.float64).ravel()
    picked = flat[np.linspace(0, flat.size - 1, TAPS).astype(int)]
    return np.array([*picked, flat.mean(), np.abs(flat).max()], np.float32)


def spots(x):
    """Values of a resized image [h, w, c] on a coarse lattice, its edges included."""
    return np.asarray(x)[::37, ::31].astype(np.float32)


def main():
    GOLDEN.mkdir(parents=True, exist_ok=True)
    _stand_in_for_torchvision()
    (GOLDEN / "figures.json").write_text(json.dumps(figures(), indent=1) + "\n")
    np.savez_compressed(GOLDEN / "inception.npz", **layers())
    np.savez_compressed(GOLDEN / "resize.npz", **resized())
    np.savez_compressed(GOLDEN / "transformers.npz", **embedded())
    print({file.name: file.stat().st_size for file in GOLDEN.iterdir()})


def figures() -> dict:
    from importlib import metadata

    import prdc
    import torch
    from pytorch_fid import fid_score
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    packages = ("torch", "torch-fidelity", "pytorch-fid", "clean-fid", "prdc", "numpy", "scipy")
    out = {"versions": {name: metadata.version(name) for name in packages}}
    for case in CASES:
        fake, real = features(case)
        a, b = torch.tensor(fake), torch.tensor(real)
        moments = [metric_fid.fid_features_to_statistics(x) for x in (a, b)]
        kid = {f"kid_{key}": value for key, value in KID.items()}
        out[case] = {
            "fd": metric_fid.fid_statistics_to_metric(*moments, verbose=False),
            "fd_pytorch_fid": float(
                fid_score.calculate_frechet_distance(
                    *(m[key] for m in moments for key in ("mu", "sigma"))
                )
            ),
            "kid": metric_kid.kid_features_to_metric(a, b, verbose=False, **kid),
            "prc": metric_prc.prc_features_to_metric(a, b, verbose=False),
            "prdc": {k: float(v) for k, v in prdc.compute_prdc(real, fake, nearest_k=5).items()},
        }
    scores = metric_isc.isc_features_to_metric(torch.tensor(logits()), splits=SPLITS)
    return out | {"inception_score": scores}


def layers() -> dict:
    """{name of a layer: tap}, of torch-fidelity's network with the weights of `inception_state`."""
    import tempfile

    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    with tempfile.NamedTemporaryFile() as file:
        shapes = _shapes(theirs)
        state = inception_state(shapes)
        torch.save({k: torch.tensor(v) for k, v in state.items()}, file.name)
        names = ["2048", "logits_unbiased"]
        net = theirs.FeatureExtractorInceptionV3(
            "inception", names, feature_extractor_weights_path=file.name
        )
    out = {}

    def keep(name):
        def hook(module, args, y):
            out.setdefault(name, tap(y[0].permute(1, 2, 0).numpy()))

        return hook

    hooks = [
        module.register_forward_hook(keep(name.replace(".", "/")))
        for name, module in net.named_modules()
        if isinstance(module, theirs.BasicConv2d) or (name.startswith("Mixed") and "." not in name)
    ]
    x = torch.tensor(pixels(SIDE, SIDE)).permute(0, 3, 1, 2).float()
    x = (x - 128) / 128
    for name, module in net.named_children():
        if name != "fc":
            x = module(x)
    pooled = x.flatten(1)
    out["pooled"], out["logits"] = tap(pooled[0]), tap((pooled @ net.fc.weight.T)[0])
    for hook in hooks:
        hook.remove()
    whole = net(torch.tensor(pixels(64, 80)).permute(0, 3, 1, 2))
    out["whole_pooled"], out["whole_logits"] = (y[0].numpy() for y in whole)
    out["shapes"] = np.array(json.dumps(shapes))
    return out


def _shapes(theirs):
    class Blank(theirs.FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            """Keeps the fresh weights."""

    import tempfile

    import torch

    with tempfile.NamedTemporaryFile() as file:
        torch.save({}, file.name)
        net = Blank("shapes", ["2048"], feature_extractor_weights_path=file.name)
    return {k: list(v.shape) for k, v in net.state_dict().items()}


def resized() -> dict:
    """{resize_case: a lattice of the resized image}: torch-fidelity's and clean-fid's own code."""
    import importlib.util

    import torch
    from torch_fidelity import interpolate_compat_tensorflow as tf1

    # without the package's __init__, which wants to download
    spec = importlib.util.find_spec("cleanfid")
    file = pathlib.Path(spec.submodule_search_locations[0]) / "resize.py"
    spec = importlib.util.spec_from_file_location("cleanfid_resize", file)
    clean = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(clean)
    out = {}
    for case, (height, width) in RESIZED.items():
        image = pixels(height, width)[0]
        x = torch.tensor(image).permute(2, 0, 1)[None].float()
        x = tf1.interpolate_bilinear_2d_like_tensorflow1x(x, (299, 299), align_corners=False)
        out[f"tf1_bilinear_{case}"] = spots(x[0].permute(1, 2, 0))
        out[f"pil_bicubic_{case}"] = spots(clean.build_resizer("clean")(image))
    return out


def embedded() -> dict:
    """transformers' DINOv2 and CLIP on images prepared as the metrics' own codes do, with Pillow.

    DINOv2's positions are interpolated as Meta's code for torch.hub does, which FD-DINOv2 was
    defined with; transformers leaves out the 0.1 that is added there to the sides.
    """
    import torch
    import transformers
    from PIL import Image

    image = Image.fromarray(pixels(*EMBEDDED)[0])
    side, imagenet = 224, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    heads, d, depth = 2, DINOV2["width"], DINOV2["depth"]
    sizes = dict(hidden_size=d, num_hidden_layers=depth, num_attention_heads=heads)
    config = transformers.Dinov2Config(**sizes, patch_size=14, image_size=14 * DINOV2["grid"])
    net = transformers.Dinov2Model(config).eval()
    net.load_state_dict(_as_transformers(dinov2_state()))

    def positions(x, height, width):
        known, grid = net.embeddings.position_embeddings, DINOV2["grid"]
        square = known[:, 1:].reshape(1, grid, grid, d).permute(0, 3, 1, 2)
        factors = [(n // 14 + 0.1) / grid for n in (height, width)]
        square = torch.nn.functional.interpolate(square, scale_factor=factors, mode="bicubic")
        return torch.cat([known[:, :1], square.permute(0, 2, 3, 1).reshape(1, -1, d)], dim=1)

    net.embeddings.interpolate_pos_encoding = positions
    out = {"versions": np.array([torch.__version__, transformers.__version__, Image.__version__])}
    with torch.no_grad():
        x = _tensor(image.resize((side, side), Image.BICUBIC), *imagenet)
        out["dinov2"] = net(x).pooler_output.numpy()
        theirs = transformers.CLIPConfig(
            projection_dim=CLIP["dimension"],
            vision_config=dict(**sizes, intermediate_size=4 * d, patch_size=32, image_size=side),
            text_config=dict(
                **sizes,
                intermediate_size=4 * d,
                vocab_size=CLIP["vocabulary"],
                bos_token_id=298,
                eos_token_id=299,
            ),
        )
        net = transformers.CLIPModel(theirs).eval()
        net.load_state_dict({k: torch.tensor(v) for k, v in clip_state().items()})
        height, width = EMBEDDED
        shorter = image.resize((side * width // height, side), Image.BICUBIC)
        left = round((shorter.width - side) / 2)
        own = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
        x = _tensor(shorter.crop((left, 0, left + side, side)), *own)
        found = net(input_ids=torch.tensor(caption_ids()), pixel_values=x)
        out["clip_image"], out["clip_text"] = found.image_embeds.numpy(), found.text_embeds.numpy()
        a, b = map(torch.tensor, unit_vectors())
        mean = lambda x, y: torch.exp(-(torch.cdist(x, y) ** 2) / (2 * 10**2)).mean()
        out["cmmd"] = (1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))).numpy()
    return out


def _as_transformers(state) -> dict:
    """The same weights under the names of transformers' Dinov2Model."""
    import torch

    names = [("cls_token", "embeddings.cls_token"), ("mask_token", "embeddings.mask_token")]
    names += [("pos_embed", "embeddings.position_embeddings"), ("blocks.", "encoder.layer.")]
    names += [("patch_embed.proj", "embeddings.patch_embeddings.projection")]
    names += [("attn.proj", "attention.o_proj"), ("ls1.gamma", "layer_scale1.lambda1")]
    names += [("ls2.gamma", "layer_scale2.lambda1")]
    out = {}
    for key, value in state.items():
        for ours, theirs in names:
            key = key.replace(ours, theirs)
        key = f"layer{key}" if key.startswith("norm.") else key
        if "attn.qkv" in key:
            for name, part in zip("qkv", np.split(value, 3)):
                out[key.replace("attn.qkv", f"attention.{name}_proj")] = torch.tensor(part)
        else:
            out[key] = torch.tensor(value)
    return out


def _tensor(image, mean, std):
    """A picture as torchvision's ToTensor and Normalize make it, [1, 3, h, w]."""
    import torch

    x = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None].float().div(255)
    return (x - torch.tensor(mean)[None, :, None, None]) / torch.tensor(std)[None, :, None, None]


def _stand_in_for_torchvision():
    """torch-fidelity imports it for networks that are not used here."""
    import sys
    from unittest import mock

    try:
        import torchvision  # noqa: F401
    except Exception:  # a build for another torch fails in its own ways
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        for name in ("", ".transforms", ".datasets", ".models", ".transforms.functional"):
            sys.modules[f"torchvision{name}"] = mock.MagicMock()


if __name__ == "__main__":
    main()
