"""Files by public name: fetched once, checked by their hash, cached. A path stays a path.

    hf:OWNER/NAME[/PLACE][@REVISION]  of the Hugging Face Hub, in its own library's cache (HF_HOME)
    https://HOST/FILE#sha256=DIGITS   of any server, by the sha256 or at least its first 8 digits,
                                      in ~/.cache/ldm_jax/weights (XDG_CACHE_HOME)
    vgg16, lpips:vgg, inception:fid   one of KNOWN, which stands for one of the others

Names are resolved where files are opened, and nowhere else: configs and records keep the names.
Of several hosts the first fetches; the others wait, and take the same revision from the cache that
they share with it, or else fetch it too.
"""

import fnmatch
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Callable

from ldm_jax.base import download, errors

HF = "hf:"
RUN = "ldm_jax"  # the folder of a repository that holds a run; around it may lie diffusers' files
URLS = ("https://", "http://")
_TORCH = "https://download.pytorch.org/models/"
_LPIPS = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/"
_LPIPS += "082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1/"
_FID = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
_DINOV2 = "https://dl.fbaipublicfiles.com/dinov2/"
KNOWN = {
    "vgg16": f"{_TORCH}vgg16-397923af.pth"
    "#sha256=397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    "alexnet": f"{_TORCH}alexnet-owt-7be5be79.pth"
    "#sha256=7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    "squeezenet": f"{_TORCH}squeezenet1_1-b8a52dc0.pth"
    "#sha256=b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
    "lpips:vgg": f"{_LPIPS}vgg.pth"
    "#sha256=a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    "lpips:alex": f"{_LPIPS}alex.pth"
    "#sha256=df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "lpips:squeeze": f"{_LPIPS}squeeze.pth"
    "#sha256=4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76",
    "inception:fid": f"{_FID}pt_inception-2015-12-05-6726825d.pth"
    "#sha256=6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "clip:l14": "hf:openai/clip-vit-large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41",
    "clip:l14-336": "hf:openai/clip-vit-large-patch14-336/pytorch_model.bin"
    "@ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
    "clip:b32": "hf:openai/clip-vit-base-patch32/pytorch_model.bin"
    "@3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
    "dinov2:b": f"{_DINOV2}dinov2_vitb14/dinov2_vitb14_pretrain.pth"
    "#sha256=0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
    "dinov2:l": f"{_DINOV2}dinov2_vitl14/dinov2_vitl14_pretrain.pth"
    "#sha256=d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
}
FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz")  # what a file's name ends in

# (what, action) -> what `action` returns: called with None by the first host, and by the others
# with the first one's result, once it has one. engine/hosts.py puts the like for several here.
after_first: Callable = lambda what, action: action(None)


def is_name(path) -> bool:
    """Whether it is a public name; a local file of the name of a known one goes before it."""
    text = str(path)
    return text.startswith((HF, *URLS)) or (text in KNOWN and not os.path.exists(text))


def file(name) -> pathlib.Path:
    """The local file of a name, fetched if need be; any other path as it is, there or not.

    Raises:
      UsageError: it cannot be had, or holds other bytes than it should.
    """
    return _local(str(name), ()) if is_name(name) else pathlib.Path(name)


def folder(name, *patterns: str) -> pathlib.Path:
    """The local folder of what matches `patterns` in the repository, or its folder, of an hf: name.

    The name of a single file gives that file; any path that is no name is returned as it is.

    Raises:
      UsageError: as `file`.
    """
    return _local(str(name), patterns) if is_name(name) else pathlib.Path(name)


def run(name: str) -> pathlib.Path:
    """The local folder of the run that a repository holds, under RUN.

    Raises:
      UsageError: as `file`.
    """
    place, at, revision = name.partition("@")
    with errors.of(f"{name} as a run of ldm_jax (`convert` reads models of other projects)"):
        return folder(f"{place.rstrip('/')}/{RUN}{at}{revision}", "*")


@functools.cache
def _local(name: str, patterns: tuple[str, ...]) -> pathlib.Path:
    address = KNOWN.get(name, name)

    def fetch(first):
        if address.startswith(HF):
            return _from_hub(name, address, patterns, first and first[1])
        return str(download.of_url(name, address)), None

    path, _ = after_first(f"{name} {patterns}", fetch)
    return pathlib.Path(path)


def _from_hub(name: str, address: str, patterns, commit: str | None) -> tuple[str, str]:
    """(the path, the commit that it is of). commit: takes the place of the name's revision."""
    from huggingface_hub import constants, snapshot_download

    download.quiet()
    place, _, revision = address.removeprefix(HF).partition("@")
    parts = place.strip("/").split("/")
    repository, inside = "/".join(parts[:2]), "/".join(parts[2:])
    if inside.endswith(FILES) or not patterns:
        wanted, patterns = [inside], ()
    else:
        wanted = [f"{inside}/{pattern}" if inside else pattern for pattern in patterns]
    shown = ", ".join(wanted[:3]) + (", ..." if len(wanted) > 3 else "")
    at = f"{constants.ENDPOINT}/{repository}"
    how = dict(revision=commit or revision or None, allow_patterns=wanted)
    try:
        root = pathlib.Path(download.persist(lambda: snapshot_download(repository, **how)))
    except Exception as e:  # no such repository, no network, no space: the library knows many
        key = ", set HF_TOKEN if it is private or gated" if download.status(e) in (401, 403) else ""
        raise errors.UsageError(
            f"{name}: {shown} could not be fetched ({download.reason(e)}); see that the name is "
            f"right{key}, or get it where there is a network, from {at}, and give its path."
        ) from e
    found = [path for path in root.rglob("*") if path.is_file()]
    relative = {path.relative_to(root).as_posix(): path for path in found}
    matched = [relative[x] for x in relative if any(fnmatch.fnmatch(x, p) for p in wanted)]
    if not matched:
        raise errors.UsageError(f"{name}: {at} holds no {shown}.")
    for path in matched:
        _check_blob(name, path)
    return str(root / inside), root.name


def _check_blob(name: str, path: pathlib.Path):
    """Compares a file with its hash, which the Hub told and its cache names the content by."""
    blob = path.resolve()
    algorithm = {64: "sha256", 40: "sha1"}.get(len(blob.name))
    if blob == path or not algorithm or not re.fullmatch("[0-9a-f]+", blob.name):
        return  # a cache without symbolic links
    with open(blob, "rb") as f:
        if algorithm == "sha1":  # of a small file, as git computes it
            content = f.read()
            digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        else:
            digest = hashlib.file_digest(f, algorithm).hexdigest()
    if digest != blob.name:
        path.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)
        raise errors.UsageError(
            f"{name}: {path.name} came with other bytes than the Hub says ({algorithm} "
            f"{digest[:12]}..., expected {blob.name[:12]}...) and was deleted: try again."
        )
