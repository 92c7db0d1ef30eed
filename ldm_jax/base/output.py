"""The output of a command: a check that its folder can be written, and its summary at the end."""

import os
import pathlib
import tempfile

from ldm_jax.base import disk, errors, remote


def check_mounted(flag: str, folder):
    """Raises UsageError for a URL, of which a local folder of that name would be made."""
    if "://" in str(folder):
        raise errors.UsageError(
            f"{flag}={folder}: mount the bucket (gcsfuse, Filestore) on every host and give the "
            "mounted path; this command takes no URL there."
        )


def check_writable(flag: str, folder):
    """Raises UsageError where `folder`, which need not be there yet, cannot be written."""
    check_mounted(flag, folder)
    place = pathlib.Path(folder).absolute()
    try:
        place.exists()  # a name that is too long is an error of the file system's
        place = next(path for path in (place, *place.parents) if os.path.lexists(path))
        with tempfile.TemporaryFile(prefix=".ldm_jax.", dir=place):
            pass
    except OSError as e:
        raise errors.UsageError(
            f"{flag}={folder} cannot be written ({place}: {e.strerror}): give a folder on a file "
            "system that takes files, where this user may write."
        ) from e


def check_file(flag: str, path, ending: str):
    """Raises UsageError where a file cannot be written, or is another one by its ending."""
    path = pathlib.Path(path)
    if path.suffix != ending or path.is_dir():
        raise errors.UsageError(f"{flag}={path} must be a file *{ending}, which is written anew.")
    check_writable(flag, path.parent)


MARKS = {  # a file or folder that tells what another one holds
    "config.json": "a run",
    "manifest.json": "samples or latents",
    "metadata.jsonl": "a data set",
    "cells": "a sweep",
}
PARTS = ("checkpoints", "averages", "images", "shards", "compilation_cache")  # of runs and samples


def check_holds(flag: str, folder, own: str = ""):
    """Raises UsageError where `folder` holds what other commands write. own: the mark of this's."""
    for mark, what in MARKS.items():
        if mark != own and remote.exists(pathlib.Path(folder) / mark):
            raise errors.UsageError(
                f"{flag}={remote.shown(folder)} holds {what} ({mark}), which would be mixed with "
                "other files or overwritten: give another folder."
            )
    path = pathlib.Path(folder).absolute()
    for place in (path, *path.parents):
        owned = (remote.exists(place.parent / mark) for mark in ("config.json", "manifest.json"))
        if place.name in PARTS and any(owned):
            raise errors.UsageError(
                f"{flag}={remote.shown(folder)} lies in {place.name}/ of "
                f"{remote.shown(place.parent)}, which is that one's own: give another folder."
            )


def check_out(flag: str, folder, own: str = ""):
    """`check_writable` and `check_holds`: whether a command may write to `folder`."""
    check_writable(flag, folder)
    check_holds(flag, folder, own)


def finish(path, summary: dict, lines=()):
    """Writes `summary` as JSON to `path`, if there is one; prints its plain values and `lines`."""
    if path:
        disk.write_json(path, summary)
        lines = (*lines, f"summary: {remote.shown(path)}")
    width = max(map(len, summary), default=0)
    for name, value in summary.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        if not isinstance(value, (dict, list)):
            print(f"  {name:{width}}  {shown}")
    for line in lines:
        print(line, flush=True)
