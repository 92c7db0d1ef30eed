"""madebyollin's tiny autoencoders: two files, keyed by positions in two torch Sequentials."""

from ldm_jax.base import errors, hub, tensorfile
from ldm_jax.weights.foreign import Foreign
from ldm_jax.weights.rules import Rule, within

_BLOCK = [
    *(Rule(rf"conv\.{2 * i}", f"conv_{i + 1}", "conv") for i in range(3)),
    Rule(r"pool\.0", "pool_in", "dense"),
    Rule(r"pool\.1", "pool_norm", "norm"),
    Rule(r"pool\.3", "pool_out", "dense"),
]


def table(levels=4, blocks=3):
    """Encoder: convolution, level 0, then (stride, level) downwards; the decoder the way back."""
    names = lambda level: [f"block_{level}_{i}" for i in range(blocks if level else 1)]
    down = ["conv_in", *names(0)]
    for level in range(1, levels):
        down += [f"down_{level}", *names(level)]
    up = [None, "conv_in", None]  # tanh; ReLU
    for level in reversed(range(1, levels)):
        up += [*names(level), None, f"up_{level}"]  # None: Upsample
    up += names(0)
    rules = []
    for half, layers in (("encoder", [*down, "conv_out"]), ("decoder", [*up, "conv_out"])):
        for i, name in enumerate(layers):
            if name and name.startswith("block"):
                rules += within([(rf"{half}\.{i}\.", f"{half}/{name}/")], _BLOCK)
            elif name:
                rules.append(Rule(rf"{half}\.{i}", f"{half}/{name}", "conv"))
    return within([("", "model/")], rules)


def open_checkpoint(folder) -> Foreign:
    """A folder with *_encoder and *_decoder files, or its name."""
    state, local = {}, hub.folder(folder, "*_encoder.*", "*_decoder.*")
    for half in ("encoder", "decoder"):
        found = sorted(path for path in local.glob(f"*_{half}.*") if path.suffix != ".json")
        if not found:
            raise errors.UsageError(f"--checkpoint={folder} has no *_{half}.pth or .safetensors.")
        state |= {f"{half}.{key}": array for key, array in tensorfile.read(found[0]).items()}
    first, last = state["encoder.0.weight"], state["decoder.1.weight"]
    pool = any(".pool." in key for key in state)
    model = dict(name="tiny", width=first.shape[0], latent_channels=last.shape[1], pool=pool)
    tables = {"autoencoder": (state, table(), ())}
    return Foreign("autoencode", {"model": model, "data": {"size": 256}}, tables)
