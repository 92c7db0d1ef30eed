"""A folder with a small, sound example of everything that a command reads; for campaign.py."""

import json
import pathlib
import shutil
import tarfile

import numpy as np
import parity
import test_adapters
from calling import call
from PIL import Image
from safetensors.numpy import save_file

from ldm_jax import convert, encode, evaluate, sample, train
from ldm_jax.base import disk
from ldm_jax.engine import published, snapshots

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEBUG = f"--config={ROOT}/configs/debug.py"
SHORT = ["steps.total=2", "steps.log=1", "steps.eval=2", "steps.checkpoint=1", "eval.records=8"]
SHORT += ["latents.batches=1", "batch_size=8", "eval.batch_size=8"]
PIXELS = ["first_stage=identity", "model.mult=(1,)", "model.attention=()"]
CAPTIONS = ["a red circle", "two squares", "a blue triangle", "nothing at all"]


def flags(*settings) -> list[str]:
    return [f"--config.{setting}" for setting in settings]


def first_stage_flags() -> list[str]:
    return flags("model.groups=8", *(s for s in SHORT if not s.startswith("latents.")))


def make(folder: pathlib.Path):
    """Fills `folder`; takes about a minute."""
    folder.mkdir(parents=True)
    _images(folder)
    _tables(folder)
    _runs(folder)
    _weights(folder)


def _must(code: int):
    if code:
        raise SystemExit(f"the sound example was refused (exit code {code})")


def _images(folder):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(16):
        name = f"{i:02d}.png"
        pixels = rng.integers(0, 255, (20, 20, 3), np.uint8)
        for place in ("images", "table", "beside", "edited"):
            (folder / place).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / place / name)
        rows.append({"file": name, "label": i % 4, "caption": CAPTIONS[i % 4]})
        rows[-1] |= {"boxes": [[0.1, 0.1, 0.5, 0.5]], "box_labels": ["shape"]}
        about = {"caption": CAPTIONS[i % 4], "label": i % 4}
        (folder / "beside" / f"{i:02d}.json").write_text(json.dumps(about))
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray((pixels[..., 0] > 128).astype(np.uint8) * 255).save(folder / "masks" / name)
    disk.write_jsonl(folder / "images" / "metadata.jsonl", rows)
    lines = ["file_name,label,caption", *(f"{r['file']},{r['label']},{r['caption']}" for r in rows)]
    (folder / "table" / "metadata.csv").write_text("\n".join(lines) + "\n")
    with tarfile.open(folder / "x.tar", "w") as archive:
        for file in sorted((folder / "beside").iterdir()):
            archive.add(file, file.name)
    import pyarrow
    import pyarrow.parquet

    encoded = [(folder / "table" / r["file"]).read_bytes() for r in rows]
    columns = {"image": encoded, "label": [r["label"] for r in rows]}
    columns |= {"caption": [r["caption"] for r in rows]}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "x.parquet")
    from ldm_jax.data import records

    packed = ({"image": image, "class": np.int32(i % 4)} for i, image in enumerate(encoded))
    names = tuple("abcd")
    records.write_arrayrecord(str(folder / "x.array_record"), packed, classes=names)
    images = rng.integers(0, 255, (8, 16, 16, 3), np.uint8)
    np.savez(folder / "images.npz", arr_0=images)
    np.savez(folder / "statistics.npz", mu=np.zeros(8), sigma=np.eye(8))


def _tables(folder):
    (folder / "labels.txt").write_text("0\n1\n2\n")
    (folder / "prompts.txt").write_text("\n".join(CAPTIONS) + "\n")
    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]))
    np.savez(folder / "cond.npz", **{"class": np.arange(3, dtype=np.int32)})
    sizes = [{"id": i, "file_name": f"{i:02d}.png", "width": 20, "height": 20} for i in range(4)]
    notes = [{"image_id": i, "caption": CAPTIONS[i]} for i in range(4)]
    captions = {"images": sizes, "annotations": notes}
    disk.write_json(folder / "captions.json", captions)
    boxes = [{"image_id": i, "bbox": [1, 2, 3, 4], "category_id": 1} for i in range(4)]
    instances = {"images": sizes, "annotations": boxes, "categories": [{"id": 1, "name": "shape"}]}
    disk.write_json(folder / "instances.json", instances)
    (folder / "classes.csv").write_text("/m/1,Shape\n/m/2,Other\n")
    lines = ["ImageID,LabelName,XMin,XMax,YMin,YMax", "00,/m/1,0.1,0.5,0.2,0.6"]
    (folder / "boxes.csv").write_text("\n".join(lines) + "\n")
    (folder / "recipe.py").write_text("from configs.debug import get_config\n")
    for name, seconds in (("old", 1.0), ("new", 1.05)):
        timed = {"machine": "it", "batch_size": 8, "train": {"seconds": seconds}}
        disk.write_json(folder / f"bench_{name}.json", timed)


def _runs(folder):
    given = [f"{DEBUG}:first_stage", f"--workdir={folder}/first", *first_stage_flags()]
    _must(call(train, *given))
    _must(call(train, f"{DEBUG}:ldm", f"--workdir={folder}/ldm", *flags(*SHORT, *PIXELS)))
    latent = [f"--config.first_stage={folder}/first", *flags(*SHORT)]
    _must(call(train, f"{DEBUG}:ldm", f"--workdir={folder}/latent", *latent))
    drawn = [f"--run={folder}/ldm", "--num=8", "--batch_size=8", "--steps=1"]
    _must(call(sample, *drawn, f"--out={folder}/samples"))
    given = [f"--run={folder}/first", f"{DEBUG}:ldm", f"--out={folder}/latents", "--batch_size=8"]
    _must(call(encode, *given))
    _must(call(evaluate, f"--run={folder}/ldm", f"--out={folder}/evaluation"))
    _must(convert.run(["export", f"--run={folder}/first", f"--out={folder}/diffusers"]))
    test_adapters.as_if_trained(folder / "ldm", folder / "adapter", 0, rank=2, targets=("conv_1",))
    params, step = snapshots.read_params(folder / "ldm")
    for name in ("config.json", "latents.json"):
        (folder / "published").mkdir(exist_ok=True)
        shutil.copy(folder / "ldm" / name, folder / "published" / name)
    published.write(folder / "published", step, params)


def _weights(folder):
    golden = parity.unpack(ROOT / "tests" / "golden", folder / "golden")
    pipeline = golden / "compvis" / "pipeline"
    for name in ("txt2img.yaml", "txt2img.ckpt"):
        if (pipeline / name).exists():
            shutil.copy(pipeline / name, folder / name)
    shutil.rmtree(folder / "golden")
    tensors = {"conv.lora_A.weight": np.zeros((2, 4), np.float32)}
    save_file(tensors, folder / "lora.safetensors")
