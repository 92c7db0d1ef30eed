"""From official keys to diffusers' through our parameters: key for key, row for row.

tests/golden/diffusers/from_compvis says where each of diffusers' arrays comes from, found with both
projects' code. Values are numbers of their own, so that nothing can be mistaken for anything else.
"""

import json
import lzma
import math
import pathlib

import numpy as np
import pytest

from ldm_jax.base import errors
from ldm_jax.weights import (
    compvis,
    diffusers,
    official,
    official_config,
    rules,
    to_diffusers,
)

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "golden" / "diffusers" / "from_compvis"


def first_stage(own, state):
    source = official.first_stage(own["target"].rpartition(".")[2], own["params"], state)
    params = rules.convert(*source.tables["autoencoder"])
    model = source.config["model"] | GROUPS
    config = to_diffusers.autoencoder_config(model)
    return config, rules.export(params, diffusers.autoencoder_table(model))


def unet(own, state):
    net = own["params"]
    model, table = official_config.unet(net)
    model |= GROUPS
    params = {"unet": rules.convert(state, compvis.unet(**table))}
    run = {"model": model, "data": {"size": net["image_size"]}, "f": 1}
    run["conditioners"] = {"tokens": dict(name="tokens", width=net.get("context_dim"))}
    ends = {"conv_in": (3, 3, net["in_channels"], 1), "conv_out": (3, 3, 1, net["out_channels"])}
    kernels = {name: {"kernel": np.zeros(shape)} for name, shape in ends.items()}
    config = to_diffusers.unet_config(run, kernels)
    return config, rules.export(params, diffusers.unet_table(model))


def text_encoder(own, state):
    _, kwargs, table = official_config.ENCODERS["BERTEmbedder"](own["params"], [])
    state = {key: value for key, value in state.items() if "to_logits" not in key}
    params = rules.convert(state, table)
    return {}, rules.export(params, diffusers.bert_table(kwargs["depth"]))


GROUPS = {"groups": 32}  # configs/base.py's
WRITERS = {"kl": first_stage, "vq": first_stage, "unet": unet, "cond": text_encoder}
# Of the training size, of a pipeline, or not of this model.
FREE = {"_diffusers_version", "sample_size", "scaling_factor", "dropout"}


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir()))
def test_official_weights_come_out_under_the_keys_of_diffusers(name):
    read = lambda file: json.loads((FOLDER / name / file).read_text())
    mapping = json.loads(lzma.decompress((FOLDER / name / "mapping.json.xz").read_bytes()))
    mapping, state, start = mapping["mapping"], {}, 0
    for entry in mapping.values():
        if entry["src"] not in state:
            size = math.prod(entry["src_shape"])
            numbers = np.arange(start, start + size, dtype=np.float64)
            state[entry["src"]] = numbers.reshape(entry["src_shape"])
            start += size
    # float32 tells whole numbers apart up to 2 ** 24 only
    assert start < 2**24
    config, written = WRITERS[name.partition("_")[0]](read("compvis.json"), state)
    # a head that the official text encoder has and does not use
    mapping = {key: entry for key, entry in mapping.items() if "to_logits" not in key}
    assert written.keys() == mapping.keys()
    for key, entry in mapping.items():
        source = state[entry["src"]]
        rows = source[entry["src_rows"]] if "src_rows" in entry else source
        np.testing.assert_array_equal(written[key], rows.reshape(entry["dst_shape"]), key)
    theirs = read("config.json")
    same = config.keys() - FREE
    assert {k: config[k] for k in same} == {k: theirs[k] for k in same}


def test_a_unet_that_predicts_codes_is_refused_by_name():
    config = {"model": {"codebook_logits": 8}}
    with pytest.raises(errors.UsageError, match="no UNet with codebook_logits=8"):
        to_diffusers.unet_config(config, {"conv_in": {"kernel": np.zeros((3, 3, 4, 8))}})
