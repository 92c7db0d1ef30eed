"""Files of public Hugging Face repositories, by names such as `hf:OWNER/NAME[@REVISION]`."""

from ldm_jax.base import errors

PREFIX = "hf:"


def folder(path: str, *names: str) -> str:
    """The local folder of the repository that an `hf:` path names; any other path as it is.

    names: the files of the repository that are wanted; fetched once and cached under HF_HOME.

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
