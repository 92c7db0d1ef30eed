"""Puts a run on the Hugging Face Hub, from where `hf:OWNER/NAME` takes it: `convert export --push`.

    README.md      the model card (card.py)
    ldm_jax/       the run: config.json, weights.safetensors (engine/published.py), latents.json,
                   and, in folders of their own, the first stage and files that it draws by
    samples.png    pictures that the run drew last, if it did
    ...            around them diffusers' folder, where diffusers has such a model

All of it is written into one folder, loaded and compared with the run; then it is one commit.
"""

import contextlib
import pathlib
import re
import shutil
import tempfile

from ldm_jax.base import config as config_lib
from ldm_jax.base import disk, download, errors, hub, watch
from ldm_jax.base import record as record_lib
from ldm_jax.engine import published, snapshots
from ldm_jax.runs import card, codecs, conversion, kinds, opened
from ldm_jax.weights import clip, text_encoders

BENEATH = ("first_stage", "encoder")  # keys of runs without which a run neither draws nor decodes
RECORDS = ("latents", "frozen", "start", "init_from")  # .json
PICTURES, MOST_TEXT = "samples.png", 2**24
# What begins like a key of the Hub, of GitHub, of a cloud or of an assistant.
_SECRET = re.compile(
    r"\b(?:hf_|ghp_|github_pat_|sk-|AKIA|AIza)[A-Za-z0-9_-]{16,}|://[^/\s:@]+:[^/\s@]+@"
)
_NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)")


def publish(run, push: str, out="", ema: bool | float = True, public=False, **said) -> dict:
    """Writes a run as the module says, and uploads it to the repository `push`, hf:OWNER/NAME.

    The repository is made, private unless `public`; what it held of an earlier version of the run
    is replaced.

    Args:
      out: a new folder that keeps what was uploaded; "" keeps nothing.
      ema: as of snapshots.read_params.
      said: of card.facts: license, data_license, evaluations.

    Raises:
      UsageError: no such name, no right to write there, other files there, or a run that is not
        whole; nothing is uploaded then.
    """
    seconds, repository = watch.stopwatch(), _repository(push)
    snapshots.check(run, ema)
    with _hub_errors(push):
        api = _api()
        _check_destination(api, push, repository, public)
    with _folder(out) as folder:
        facts = write(run, folder, push, ema, **said)
        with _hub_errors(push):
            about = dict(repo_id=repository, repo_type="model")
            api.create_repo(**about, private=not public, exist_ok=True)
            message = f"Step {facts['step']} of a run of ldm_jax, weights {facts['digest']}"
            what = dict(commit_message=message, delete_patterns="*")
            commit = api.upload_folder(**about, folder_path=folder, **what)
        summary = {"published": push, "commit": commit.oid, "weights": facts["digest"]}
        summary |= {"step": facts["step"], "loads_as": facts["loads_as"] or "not by diffusers"}
        return summary | {"seconds": seconds(), "notes": facts["notes"]}


def write(run, folder: pathlib.Path, name: str, ema: bool | float = True, **said) -> dict:
    """Writes the folder of a repository; returns what its card says, see card.facts."""
    record = record_lib.Record(run)
    config, whole = record.config, opened.load(run, ema=ema)
    facts = card.facts(record, name, whole.step, whole.digest, ema, **said)
    _write_run(run, folder / hub.RUN, ema)
    if (found := opened.load(folder / hub.RUN).digest) != whole.digest:
        raise errors.RunError(f"{run} was written with other weights: {found}, not {whole.digest}.")
    facts["loads_as"], facts["without"] = _write_diffusers(record, config, folder, ema)
    if why := facts["without"]:
        facts["notes"].append(f"without files for diffusers: {why}")
    if pictures := sorted((record.path / "images").glob("*.png")):
        shutil.copyfile(pictures[-1], folder / PICTURES)
        facts["pictures"] = PICTURES
    disk.write_text(folder / "README.md", card.text(facts))
    check_secrets(folder)
    return facts


def _write_run(run, folder: pathlib.Path, ema: bool | float = True):
    """The run in `folder`, without an optimizer's state; whatever it needs to draw inside it."""
    folder.mkdir(parents=True)
    record, inside = record_lib.Record(run), record_lib.Record(folder)
    config = record.config
    player = kinds.of(config).player
    params, step = snapshots.read_params(record.path, (player,), ema=ema)
    published.write(folder, step, params)
    with config.unlocked():
        for key in BENEATH:
            if config.get(key) and not codecs.is_identity(config[key]):
                _write_run(config[key], folder / key)
                config[key] = key
        copy_files(config, folder)
    inside.write_config(config_lib.from_dict(_without_paths(config_lib.plain(config))))
    if record.data:
        inside.write_data(record.data)
    for name in RECORDS:
        if disk.there(file := record.path / f"{name}.json"):
            inside.write(**{name: _without_paths(disk.read_json(file))})


def copy_files(config, folder):
    """Puts text encoders and vocabularies that are files here inside; names stay names."""
    for label, conditioner in config.get("conditioners", {}).items():
        for key in ("weights", "tokenizer"):
            given = conditioner.get(key)
            if not given or not isinstance(given, str) or hub.is_name(given):
                continue
            files = [clip.weights_file(given)]
            if key == "tokenizer":
                files = [pathlib.Path(given) / file for file in text_encoders.VOCABULARY]
            place = folder / f"{label}_{key}"
            place.mkdir()
            for file in files:
                shutil.copyfile(file, place / file.name)
            # The reader knows a folder's file by its name; one of another name is given itself.
            whole = key == "tokenizer" or files[0].name in clip.FILES
            conditioner[key] = place.name if whole else f"{place.name}/{files[0].name}"
    words = config.data.get("vocabulary")
    if words and not hub.is_name(words):
        path = pathlib.Path(words)
        path = path / "vocab.txt" if path.is_dir() else path
        shutil.copyfile(path, folder / "vocab.txt")
        config.data.vocabulary = "vocab.txt"


def _write_diffusers(record, config, folder, ema) -> tuple[str, str]:
    """(what loads the folder in diffusers, ""), or ("", why nothing does)."""
    part, why, loads_as = folder / ".diffusers", "", ""
    part.mkdir()
    try:
        loads_as = kinds.of(config).export(record, config, part, ema)
        for path in part.iterdir():
            path.rename(folder / path.name)
    except errors.UsageError as e:
        why = str(e)
    shutil.rmtree(part)
    return loads_as, why


def _without_paths(value):
    """A value of JSON in which a path of this machine is the name of its file or folder."""
    if isinstance(value, dict):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    is_path = isinstance(value, str) and value.startswith(("/", "~", "gs://"))
    return pathlib.PurePosixPath(value).name if is_path else value


def check_secrets(folder):
    """Raises UsageError where a text file to be uploaded holds what looks like a key."""
    from huggingface_hub import get_token

    token = get_token()
    for path in folder.rglob("*"):
        if path.suffix not in (".json", ".txt", ".md") or path.stat().st_size > MOST_TEXT:
            continue
        text = path.read_text(encoding="utf-8")
        if (token and token in text) or _SECRET.search(text):
            raise errors.UsageError(
                f"{path.relative_to(folder)} would hold what looks like a key or a password: take "
                "it out of the run's config.json; nothing was uploaded."
            )


def _repository(name: str) -> str:
    match = _NAME.fullmatch(name)
    if not match:
        raise errors.UsageError(f"--push={name}: give hf:OWNER/NAME.")
    return match[1]


def _api():
    from huggingface_hub import HfApi

    download.quiet()
    return HfApi(library_name="ldm_jax")


def _check_destination(api, name: str, repository: str, public: bool):
    """Raises UsageError for an unknown user, and for a repository that is not meant."""
    api.whoami()
    if not api.repo_exists(repository):
        return
    if api.repo_info(repository).private == public:
        remedy = "leave out --public" if public else "give --public"
        raise errors.UsageError(
            f"--push={name} is {'private' if public else 'public'}: {remedy}, or take another name."
        )
    files = set(api.list_repo_files(repository)) - {".gitattributes", "README.md"}
    if files and f"{hub.RUN}/{record_lib.CONFIG}" not in files:
        raise errors.UsageError(
            f"--push={name} holds files of something else ({min(files)}): take another name."
        )


@contextlib.contextmanager
def _hub_errors(name: str):
    """One line of what the Hub or its library raises."""
    try:
        yield
    except errors.UsageError:
        raise
    except Exception as e:  # no network, no token, no right, no space: the library knows many
        raise errors.UsageError(
            f"--push={name}: {download.reason(e)}; nothing was published. See that the name is "
            "right, and that HF_TOKEN, or `hf auth login`, gives a token that may write there."
        ) from e


@contextlib.contextmanager
def _folder(out):
    """The folder to write: `out`, whole or not at all, or one that is removed at the end."""
    if out:
        with conversion.new_folder(out) as folder:
            yield folder
        return
    with tempfile.TemporaryDirectory(prefix="ldm_jax_publish_") as folder:
        yield pathlib.Path(folder)
