"""Public files by name: `hf:OWNER/NAME[@REVISION]`, a Hugging Face repository's folder."""

from ldm_jax.base import errors

PREFIX = "hf:"


def folder(path: str, *names: str) -> str:
    """A local folder: `path` itself or, for an `hf:` name, one that holds the repository's files
    `names`, which are fetched once and cached (under HF_HOME).

    Raises:
      UsageError: a file could not be fetched, and is not in the cache.
    """
    if not path.startswith(PREFIX):
        return path
    from huggingface_hub import snapshot_download

    repository, _, revision = path.removeprefix(PREFIX).partition("@")
    try:
        return snapshot_download(repository, revision=revision or None, allow_patterns=list(names))
    except Exception as e:  # no such repository, no network, no space: the library knows many
        raise errors.UsageError(
            f"{path}: {', '.join(names)} could not be fetched ({errors.reason(e)}); get them "
            f"where there is a network, from https://huggingface.co/{repository}, and give their "
            "path."
        ) from e
