"""The recipes: each loads, builds without memory, and has the paper's number of parameters."""

import ast
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from configs import base
from ldm_jax.base import config as config_lib
from ldm_jax.base import defaults, errors, tree
from ldm_jax.data import sources
from ldm_jax.engine import optim
from ldm_jax.runs import check as check_lib
from ldm_jax.runs import data as data_lib
from ldm_jax.runs import idle, kinds
from ldm_jax.stages import diffuse

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What recipes are made of; and those whose variant is a run (test_student.py, test_decoder.py,
# test_adapters.py, test_control.py).
LIBRARIES = ("__init__", "base", "paper", "student", "distribution", "decoder")
LIBRARIES += ("lora", "sd_v1_lora", "control")
FILES = {f.stem: f for f in sorted((ROOT / "configs").glob("*.py")) if f.stem not in LIBRARIES}
# Not the paper's.
SMALL = ("quickstart", "photos", "modern", "debug", "taef2", "tasks", "dit", "uvit")

# Millions of parameters, counted from the official code and its yaml files (denoiser; conditioner).
OFFICIAL = {
    "kl_f4": (55.3, 0),
    "kl_f8": (83.65, 0),
    "kl_f16": (69.6, 0),
    "kl_f32": (103.9, 0),
    "vq_f4": (55.3, 0),
    "vq_f4_noattn": (53.2, 0),
    "vq_f8": (67.7, 0),
    "vq_f8_n256": (67.7, 0),
    "vq_f16": (69.6, 0),
    "ldm_celebahq": (274.06, 0),
    "ldm_ffhq": (274.06, 0),
    "ldm_lsun_bedrooms": (274.06, 0),
    "ldm_lsun_churches": (294.97, 0),
    "ldm_imagenet_f4": (400.92, 0.5125),
    "ldm_imagenet_f8": (394.98, 0.512),
    "ldm_text2img_1b45": (872.30, 542.9),
    "ldm_text2img_cc": (403.6, 166.6),
    "ldm_layout_openimages": (246.3, 54.7),
    "ldm_layout_coco": (312.2, 54.7),
    "ldm_semantic_256": (215.23, 182 * 3 / 1e6),
    "ldm_semantic_512": (215.23, 182 * 3 / 1e6),
    "ldm_superres": (113.62, 0),
    "ldm_inpaint": (387.25, 0),
    "ldm_rdm_768": (1335.5, 0),
    "sd_v1": (859.52, 0),
    "sd_v1_vae": (83.65, 0),
    "ablation:class_f1": (396.8, 0.512),
    "ablation:class_f2": (390.9, 0.512),
    "ablation:class_f4": (400.9, 0.512),
    "ablation:class_f8": (395.0, 0.512),
    "ablation:class_f16": (395.0, 0.512),
    "ablation:class_f32": (395.1, 0.512),
    "ablation:uncond_f1": (270.5, 0),
    "ablation:uncond_f2": (264.5, 0),
    "ablation:uncond_f4": (274.1, 0),
    "ablation:uncond_f8": (257.7, 0),
    "ablation:uncond_f16": (257.8, 0),
    "ablation:uncond_f32": (257.9, 0),
}
# Shapes that the paper's table 8 names without an architecture: ours, so nothing to compare with.
OURS = ("kl_f2", "kl_f16:c8", "kl_f32:c16", "vq_f2", "vq_f2:n64", "vq_f4:n256")
OURS += ("vq_f32", "vq_f32:c32", "ldm_celebahq:tpu")

# What the paper prints, in millions, and what it counts beside our parameters.
PAPER = {
    "vq_f4": (55, 0),  # Tab. 18
    "vq_f8": (68, 0),
    "ldm_celebahq": (274, 0),  # Tab. 12
    "ldm_ffhq": (274, 0),
    "ldm_lsun_bedrooms": (274, 0),
    "ldm_lsun_churches": (294, 0),
    "ldm_imagenet_f4": (400, 0),  # Tab. 10
    "ldm_imagenet_f8": (395, 0),
    # the official text transformer keeps a map to logits, which nothing uses
    "ldm_text2img_1b45": (1450, 1281 * 30_522 / 1e6),
    "ldm_layout_openimages": (306, 513 * 8192 / 1e6),  # Tab. 15
    "ldm_layout_coco": (345, 513 * 8192 / 1e6),
    "ldm_semantic_256": (215, 0),
    "ldm_superres": (169, 55.3),  # with its first stage
    "ldm_inpaint": (387, 0),
    "ablation:class_f1": (396, 0),  # Tab. 13
    "ablation:class_f2": (391, 0),
    "ablation:class_f4": (391, 0),
    "ablation:class_f8": (395, 0),
    "ablation:class_f16": (395, 0),
    "ablation:class_f32": (395, 0),
    "ablation:uncond_f1": (270, 0),  # Tab. 14
    "ablation:uncond_f2": (265, 0),
    "ablation:uncond_f4": (274, 0),
    "ablation:uncond_f8": (258, 0),
    "ablation:uncond_f16": (260, 0),
    "ablation:uncond_f32": (258, 0),
}
# Where paper and arithmetic disagree the official code's arithmetic is used, because:
DISAGREE = {
    "ablation:class_f4": "Tab. 13's 391M are 400M in Tab. 3 and 10 for the same network",
    "ablation:uncond_f16": "Tab. 14's 260M, but 258M for f = 8 and 32, the same but for the latent",
    "ldm_layout_coco": "Tab. 15's 345M fit neither the network (312M) nor network and transformer",
}

SHAPES = {}


@pytest.fixture(autouse=True, scope="module")
def at_the_root():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield


def load(name):
    stem, _, variant = name.partition(":")
    return config_lib.load(f"configs/{stem}.py" + (f":{variant}" if variant else ""))


def abstract(name):
    """The shapes of a recipe's parameters; recipes of the same network share the work."""
    config = load(name)
    config.model.remat = False  # a third faster to trace
    decisive = {k: config.get(k) for k in ("model", "conditioners", "first_stage")}
    key = json.dumps(decisive, default=lambda node: node.to_dict(), sort_keys=True)
    if key not in SHAPES:
        SHAPES[key] = _build(config)
    return SHAPES[key]


def _build(config):
    if config.stage == "autoencode":
        model = kinds.of(config).network(config)
        x = jnp.zeros((1, model.f, model.f, 3))
        return jax.eval_shape(lambda: model.init(jax.random.key(0), x))["params"]
    return jax.eval_shape(kinds.of(config).model(config).init, jax.random.key(0))


def millions(name):
    """(network, conditioners)"""
    shapes = abstract(name)
    network = shapes.get("unet", shapes)
    conditioners = {k: v for k, v in shapes.items() if k.startswith("conditioners")}
    return tree.count(network) / 1e6, tree.count(conditioners) / 1e6


@pytest.mark.parametrize("name", OFFICIAL)
def test_parameters_are_those_of_the_official_code(name):
    network, conditioners = millions(name)
    assert network == pytest.approx(OFFICIAL[name][0], rel=2e-3)
    assert conditioners == pytest.approx(OFFICIAL[name][1], rel=2e-3)


@pytest.mark.parametrize("name", PAPER)
def test_parameters_are_those_of_the_paper(name):
    """Within half a percent, or half a unit of what is printed."""
    printed, beside = PAPER[name]
    ours = sum(millions(name)) + beside
    agrees = abs(ours - printed) <= max(0.005 * printed, 0.5)
    assert agrees == (name not in DISAGREE), f"{name}: {ours:.1f}M, printed {printed}M"


def test_every_recipe_of_the_paper_is_counted():
    counted = {name.partition(":")[0] for name in (*OFFICIAL, *OURS)}
    assert counted == set(FILES) - set(SMALL)


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_says_what_it_is_and_how_to_run_it(name):
    doc = ast.get_docstring(ast.parse(FILES[name].read_text()))
    title, *rest = doc.split("\n\n")
    assert title.endswith(".") and len(rest) >= 2, "a title, a command, what to expect"
    command = rf"python -m ldm_jax\.train --config=configs/{name}\.py|bash launch/{name}\.sh"
    assert re.search(command, doc)


def variants(stem):
    """The names of a file's variants, each as FILE:VARIANT; just FILE where it has none."""
    found, pick = [], config_lib.variants
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config_lib, "variants", lambda a, **all: found.extend(all) or pick(a, **all))
        patch.chdir(ROOT)
        load(stem)
    return [f"{stem}:{variant}" for variant in found] or [stem]


NEEDS_RUN = "quickstart:student"  # test_student.py
RECIPES = [name for stem in FILES for name in variants(stem) if name != NEEDS_RUN]
NEEDS_FILES = ("sd_v1:captions",)  # 1.7 GB of them; tests/test_clip_run.py trains one like it


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_only_changes_what_base_has(name):
    config = load(name)
    assert config.is_locked
    default = {"autoencode": base.first_stage, "diffuse": base.ldm}[config.stage]()

    def keys(node):
        # A model with a name of its own is another network, with its own arguments.
        free = ("conditioners", "model") if "name" in config.model else ("conditioners",)
        node = {k: v for k, v in node.items() if k in usual or not optim.OPTIMIZERS.takers(k)}
        return {k: keys(v) if hasattr(v, "keys") and k not in free else 0 for k, v in node.items()}

    usual = defaults.optimizer()  # an optimizer's own options may be added

    assert keys(config) == keys(default)
    for player in config.optim.values():
        optim.make(player, config.steps.total)
    # What does nothing waits for a flag that the recipe's docstring names.
    waiting = {"debug:first_stage": "codebook_size", "photos:first_stage": "discriminator"}
    assert all(waiting.get(name, "?") in key for key in idle.found(config))
    if config.stage == "diffuse":
        if config.model.name == "unet":
            assert bool(config.model.heads) != bool(config.model.head_channels)
        diffuse.Loss(**config.loss)


def test_an_unknown_kind_of_attention_is_refused_by_its_key():
    config = load("kl_f4")
    with config.unlocked():
        config.model.attention_kind = "liner"
    with pytest.raises(errors.UsageError, match=r"config.model.attention_kind=liner.*'linear'"):
        check_lib.check(config, range(10))


def test_a_recipe_in_the_place_of_a_first_stage_is_refused_with_the_way_to_train_it():
    with pytest.raises(errors.UsageError, match=r"--config=configs/vq_f4.py --workdir=RUN"):
        check_lib.check(load("ldm_celebahq"), range(10))


class Records(sources.Source):
    """As many as a recipe may want, with names; none is read."""

    classes = box_classes = tuple(f"class {i}" for i in range(1000))

    def __len__(self):
        return 10_000


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A vocab.txt whose special tokens have bert-base-uncased's ids."""
    ids = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]"}
    file = tmp_path_factory.mktemp("words") / "vocab.txt"
    file.write_text("\n".join(ids.get(i, f"word{i}") for i in range(200)))
    return str(file)


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in NEEDS_FILES])
def test_the_checks_before_a_run_let_every_recipe_pass(name, vocabulary, tmp_path):
    config = load(name)
    scenes = config.data.source == "scenes"
    source = data_lib.open_source(config.data) if scenes else Records()
    with config.unlocked():
        config.data.vocabulary = "" if scenes else vocabulary
        if config.stage == "autoencode":
            config.loss.perceptual_weight = 0.0  # its weights are files
        elif config.first_stage != "identity":  # of a run, nothing but its config is read
            first = config_lib.load(config.first_stage or "configs/kl_f4.py")
            (tmp_path / "config.json").write_text(config_lib.to_json(first))
            config.first_stage = str(tmp_path)
    check_lib.check(data_lib.resolve(config, source), source)


TASKS = {
    "ldm_text2img_cc": {"text_ids"},
    "ldm_semantic_256": {"segmentation"},
    "ldm_superres": {"low_res"},
    "ldm_inpaint": {"masked_image", "mask"},
    "sd_v1": {"tokens"},
}


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_of_each_task_takes_the_fields_that_it_names(name):
    """Abstractly, on a thin network."""
    config = load(name)
    config.model.update(width=32, mult=(1, 2), blocks=1, attention=(2,), transformer_depth=1)
    config.model.update(heads=1, head_channels=0, remat=False)
    for kwargs in config.conditioners.values():
        kwargs.update({"depth": 1} if "depth" in kwargs else {})
    stage = kinds.of(config).model(config)
    assert set(stage.fields) == TASKS[name]

    def loss(key):
        image = jnp.zeros((2, config.data.size, config.data.size, 3))
        batch = {"masked_image": image} | stage.example(2, *image.shape[1:3]) | {"image": image}
        batch = {field: batch[field] for field in ("image", *stage.fields)}
        model = stage.codec.model
        first = model.init(key, jnp.zeros((1, model.f, model.f, 3)))["params"]
        frozen = {"first_stage": first, "scale": 1.0}
        return stage.denoiser_loss({"denoiser": stage.init(key)}, frozen, batch, key, 0, {})[0]

    assert jax.eval_shape(loss, jax.random.key(0)).shape == ()


def test_the_table_of_the_docs_is_up_to_date():
    """docs/zoo.md: a row per recipe, `| name | network M | conditioner M | ...`."""
    text = (ROOT / "docs" / "zoo.md").read_text()
    rows = dict(re.findall(r"^\| `([\w:]+)` \| ([\d.]+(?: \+ [\d.]+)?) \|", text, re.M))
    expected = {}
    for name in (*OFFICIAL, *OURS):
        network, conditioners = millions(name)
        beside = f" + {conditioners:.2f}" if conditioners > 5e-3 else ""
        expected[name] = f"{network:.2f}{beside}"
    assert rows == expected
