"""Which columns of an Arrow schema hold images, captions and classes."""

import json

from ldm_jax.base import errors


def of_images(path, schema, given: str) -> str:
    """The column of images: `given`, else `image`, else the only one there is.

    Raises:
      UsageError: there is none, or there are several; path: of the file, for the message.
    """
    fits = [field.name for field in schema if is_image(field.type)]
    if not given and len(fits) > 1 and "image" not in fits:
        raise errors.UsageError(
            f"{path} has several columns of images ({', '.join(fits)}): choose one with "
            "--config.data.image_field=COLUMN."
        )
    found = find(path, schema, given, ("image", *fits), is_image)
    if found is None:
        raise errors.UsageError(
            f"{path} has no column of images, bytes or struct{{bytes, path}} (it has "
            f"{', '.join(schema.names)})."
        )
    return found


def find(path, schema, given: str, usual, fits) -> str | None:
    """The column `given`, which must be there; else the first of `usual` that fits, or None."""
    if not given:
        known = (name for name in usual if name in schema.names)
        return next((name for name in known if fits(schema.field(name).type)), None)
    if given not in schema.names:
        raise errors.UsageError(
            f"{path} has no column {given!r}; it has {', '.join(schema.names)}"
            f"{errors.nearest(given, schema.names)}"
        )
    if not fits(schema.field(given).type):
        raise errors.UsageError(f"{path}: its column {given!r} is {schema.field(given).type}.")
    return given


def is_image(kind) -> bool:
    """Encoded images: bytes, or the struct{bytes, path} of `datasets`."""
    from pyarrow import types

    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return types.is_binary(kind) or types.is_large_binary(kind)


def is_string(kind) -> bool:
    """One text."""
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind)


def is_text(kind) -> bool:
    """A text, or a list of texts."""
    from pyarrow import types

    listed = types.is_list(kind) or types.is_large_list(kind)
    return is_string(kind.value_type if listed else kind)


def is_label(kind) -> bool:
    """An id or a name."""
    from pyarrow import types

    return types.is_integer(kind) or is_string(kind)


def class_names(schema, label) -> tuple[str, ...]:
    """The names that `datasets` keeps of a ClassLabel, in the schema's metadata."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return tuple(map(str, about["info"]["features"][label]["names"]))
    except (ValueError, LookupError, TypeError, AttributeError):
        return ()
