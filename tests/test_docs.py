"""The pages: the site builds, links lead somewhere, and what is said to be typed is taken."""

import importlib
import os
import pathlib
import re
import subprocess
import sys

import blocks
import compiling
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from ldm_jax import cli
from ldm_jax.base import config as config_lib
from ldm_jax.base import errors

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(([^)\s]+)\)")
LANGUAGES = ("bash", "python", "text", "{eval-rst}", "{toctree}")


def _name(page: pathlib.Path) -> str:
    return page.name


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("myst_parser")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-E", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert pages <= {page.stem for page in tmp_path.glob("*.html")}


def anchors(page: pathlib.Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", [*blocks.PAGES, blocks.ROOT / "CHANGELOG.md"], ids=_name)
def test_links_lead_somewhere(page):
    lost = []
    for link in LINK.findall(re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.M | re.S)):
        path, _, anchor = link.partition("#")
        if link.startswith("http"):
            continue
        to = page.parent / path if path else page
        if not to.exists() or (anchor and anchor not in anchors(to)):
            lost.append(link)
    assert not lost


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    blocks.lay_out(folder := tmp_path_factory.mktemp("pages"))
    return folder


@pytest.mark.parametrize("page", blocks.PAGES, ids=_name)
def test_every_command_of_a_page_is_taken_as_it_stands(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    wrong = []
    for block in blocks.blocks(page):
        if block.language not in LANGUAGES:
            wrong.append(f"{block.where}: a block is of {', '.join(LANGUAGES)}")
        for argv in blocks.calls(block, folder) if block.language == "bash" else ():
            try:
                if argv[0] != "unknown" or not block.reason:
                    blocks.check(argv)
            except (AssertionError, errors.UsageError, ImportError) as e:
                wrong.append(f"{block.where}: {e}")
    for module, rest in blocks.INLINE.findall(page.read_text()):
        if module.rpartition(".")[2].isupper():
            continue
        known = cli.define(getattr(importlib.import_module(module), "FLAGS", {}), [])
        flags = re.findall(r"--(\w+)(?=[= \]]|$)", rest)
        wrong += [f"{module} has no --{flag}" for flag in flags if flag not in known]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_the_tutorial_followed_to_the_letter(tmp_path):
    """Its bash with a few steps of small batches, without a file of weights and the Hub."""
    pictures = np.random.default_rng(0).integers(0, 256, (24, 70, 80, 3)).astype(np.uint8)
    for i, picture in enumerate(pictures):
        file = tmp_path / "PHOTOS" / ("daisy", "rose")[i % 2] / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    train = "--config.steps.total=2 --config.steps.eval=2 --config.batch_size=4"
    drawn = "--config.sample.steps=2"
    short = f"""
        python() {{
            case "$*" in
                *WEIGHTS* | *--push=*) return ;;
                *train*:first_stage\\ *) set -- "$@" {train} --config.optim.autoencoder.warmup=1 ;;
                *train*:ldm\\ *) set -- "$@" {train} {drawn} --config.optim.denoiser.warmup=1 ;;
                *ldm_jax.sample*) set -- "$@" --num=4 --batch_size=4 --steps=2 ;;
            esac
            {sys.executable} "$@"
        }}
    """
    text = [b.text for b in blocks.blocks(ROOT / "docs" / "tutorial.md") if b.language == "bash"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": compiling.FAST}
    done = subprocess.run(
        ["bash", "-ec", "\n".join([short, *text])],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "samples" / "grid.png").exists()


@pytest.mark.parametrize("page", blocks.PAGES, ids=_name)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, request):
    """Its blocks after one another, in one namespace; those of docs/extend.md: test_extend.py."""
    own = [b for b in blocks.blocks(page) if b.language == "python" and not b.reason]
    if page.name == "extend.md" or not own:
        return
    monkeypatch.chdir(tmp_path)
    if any("ldm_jax.load(" in block.text for block in own):
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "photos_ldm").symlink_to(request.getfixturevalue("pixel_run"))
    sweep = page.name == "ablation.md"
    config = config_lib.load("sweeps/objectives:debug" if sweep else "photos:ldm")
    space = {"config": config, "ConfigDict": ConfigDict}
    space |= {"base": importlib.import_module("configs.base")}
    space |= {"images": np.zeros((2, 16, 16, 3)), "ids": np.arange(8)}
    for block in own:
        try:
            exec(compile(block.text, block.where, "exec"), space)
        except Exception as e:
            raise AssertionError(f"{block.where}: {e!r}") from e
