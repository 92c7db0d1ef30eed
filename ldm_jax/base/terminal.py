"""What commands say: coloured on a terminal, plain in a file; tables that fit 80 columns."""

import functools
import os
import sys
import textwrap

COLUMNS = 80
COLOURS = {"red": 31, "yellow": 33}
_wrap = functools.partial(
    textwrap.wrap, width=COLUMNS, break_long_words=False, break_on_hyphens=False
)


def is_one(stream) -> bool:
    """Whether a cursor can be moved there and colours are seen."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def colours(stream) -> bool:
    """Whether to use colours there; NO_COLOR (no-color.org) forbids them."""
    return is_one(stream) and not os.environ.get("NO_COLOR")


def tint(text: str, colour: str, stream) -> str:
    """The text in a colour of COLOURS, where the stream shows it."""
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if colours(stream) else text


def see_to_streams():
    """Gives a process that was started without stdout or stderr ones that lead nowhere.

    What an encoding lacks is escaped, as a name may hold anything.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (until the process ends)
        elif reconfigure := getattr(getattr(sys, name), "reconfigure", None):
            reconfigure(errors="backslashreplace")


def warn(text: str):
    """A line on stderr that begins with "warning:"."""
    word, _, rest = text.partition(" ")
    print(tint(word, "yellow", sys.stderr), rest, file=sys.stderr, flush=True)


def table(rows: dict[str, str]) -> list[str]:
    """Lines of two columns, {first: second}; what is too long goes on below its column.

    A first column of more than a third of the line has lines of its own.
    """
    width = max((len(name) for name in rows if len(name) <= COLUMNS // 3), default=0)
    hang, lines = " " * (width + 4), []
    for name, said in rows.items():
        first = f"  {name:{width}}  "
        if len(first) > len(hang):
            lines.append(first.rstrip())
            first = hang
        filled = _wrap(said, initial_indent=first, subsequent_indent=hang)
        lines += filled or [first.rstrip()]
    return lines
