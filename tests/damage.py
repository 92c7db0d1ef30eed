"""What can be wrong with a file: functions of (path, random.Random) that spoil it, by name."""

import io
import json
import os
import pathlib
import struct
import tarfile
import zipfile
import zlib

import numpy as np

BIG = "9" * 5000
JSON_VALUES = ["null", "-1", "0", "1e999", "NaN", "-Infinity", '"x"', '""', "[]", "{}", "true"]
JSON_VALUES += ["[[]]", '{"a": 1}', "0.5", "1e308", "2147483648", BIG, '"a\\nb"', '"\\ud800"']
JSON_VALUES += ["[1, 2, 3]", '"' + "x" * 5000 + '"', "[" * 3000 + "]" * 3000]
TEXTS = [
    "null",
    "[]",
    "3",
    '"text"',
    "{",
    "[" * 100_000,
    '{"a": 1, "a": 2}',
    BIG,
    "NaN",
    "\0",
    "{}",
]


def _replaced(make):
    """A damage that puts something else in the place of the file."""

    def damage(path, rng):
        path.unlink()
        make(path)

    return damage


def _bytes(change):
    """A damage of the content: (bytes, rng) -> bytes."""

    def damage(path, rng):
        path.write_bytes(change(path.read_bytes(), rng))

    return damage


def _flipped(content, rng):
    content = bytearray(content)
    for _ in range(min(8, len(content))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def _inserted(what):
    def change(content, rng):
        at = rng.randrange(len(content) + 1)
        return content[:at] + what + content[at:]

    return _bytes(change)


PLACES = {  # what is no file of that kind at all
    "missing": lambda path, rng: path.unlink(),
    "folder": _replaced(os.mkdir),
    "fifo": _replaced(os.mkfifo),
    "endless": _replaced(lambda path: path.symlink_to("/dev/zero")),
    "nothing": _replaced(lambda path: path.symlink_to("/dev/null")),
    "loop": _replaced(lambda path: path.symlink_to(path.name)),
    "dangling": _replaced(lambda path: path.symlink_to("nowhere")),
    "process": _replaced(lambda path: path.symlink_to("/proc/self/mem")),
    "denied": lambda path, rng: path.chmod(0),
}
CONTENTS = {
    "empty": _bytes(lambda content, rng: b""),
    "noise": _bytes(lambda content, rng: rng.randbytes(300)),
    "half": _bytes(lambda content, rng: content[: len(content) // 2]),
    "zeros": _bytes(lambda content, rng: bytes(len(content))),
    "enormous": lambda path, rng: os.truncate(path, 2**40),
}
SUBTLE = {  # that a reader may bear
    "cut": _bytes(lambda content, rng: content[: -rng.randint(1, 8)]),
    "flips": _bytes(_flipped),
    "more": _bytes(lambda content, rng: content + rng.randbytes(9)),
    "twice": _bytes(lambda content, rng: content * 2),
}
TEXT = {
    "bom": _bytes(lambda content, rng: b"\xef\xbb\xbf" + content),
    "crlf": _bytes(lambda content, rng: content.replace(b"\n", b"\r\n")),
    "utf16": _bytes(lambda content, rng: content.decode(errors="replace").encode("utf-16")),
    "no utf-8": _inserted(b"\xff\xfe"),
    "nul": _inserted(b"\0"),
    "a long line": _inserted(b"x" * 300_000),
    "an odd quote": _inserted(b'"'),
    "an odd comma": _inserted(b","),
}


def _leaf(path, rng):
    """One value of a JSON document, somewhere in it, is another; or a key is gone."""
    lines = path.read_text().split("\n") if path.suffix == ".jsonl" else [path.read_text()]
    number = rng.choice([i for i, line in enumerate(lines) if line.strip()])
    document, marker = json.loads(lines[number]), "@marker@"
    holder, key = {"": document}, ""
    while isinstance(holder[key], (dict, list)) and holder[key] and rng.random() < 0.85:
        holder = holder[key]
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    whole = holder.get("") is document if isinstance(holder, dict) else False
    if isinstance(holder, dict) and not whole and rng.random() < 0.15:
        del holder[key]
        lines[number] = json.dumps(document)
    else:
        holder[key] = marker
        text = json.dumps(marker if whole else document)
        lines[number] = text.replace(json.dumps(marker), rng.choice(JSON_VALUES))
    path.write_text("\n".join(lines))


def _cell(path, rng):
    lines = path.read_text().split("\n")
    number = rng.choice([i for i, line in enumerate(lines) if line.strip()])
    cells = lines[number].split(",")
    words = ["nan", "inf", "-1", "1e999", "", "x", '"', "٣", "2", "a\rb", "0x1", "1_0", BIG]
    cells[rng.randrange(len(cells))] = rng.choice(words)
    if rng.random() < 0.2:
        cells.append("more") if rng.random() < 0.5 else cells.pop()
    lines[number] = ",".join(cells)
    path.write_text("\n".join(lines))


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _image_of(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(1000)))
    return lambda path, rng: path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks + _chunk(b"IEND", b""))


def _archive(*members):
    """members: (name, type, size in the header, content)."""

    def damage(path, rng):
        with tarfile.open(path, "w") as archive:
            for name, kind, _, content in members:
                about = tarfile.TarInfo(name)
                about.type, about.size, about.linkname = kind, len(content), "/etc/passwd"
                archive.addfile(about, io.BytesIO(content))
        if any(size for _, _, size, _ in members):
            raw = bytearray(path.read_bytes())
            raw[124:136] = b"77777777777\0"
            path.write_bytes(raw)

    return damage


def _arrays(change):
    """A damage of the arrays of an .npz: {name: array} -> another such."""

    def damage(path, rng):
        with np.load(path) as found:
            arrays = {name: found[name] for name in found.files}
        np.savez(path, **{k: change(v, rng) for k, v in arrays.items()})

    return damage


def _bomb(path, rng):
    header = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": (2**34, 2**10)}
    np.lib.format.write_array_header_1_0(header, about)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", header.getvalue() + bytes(2**27))


def _tensors(header):
    def damage(path, rng):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))

    return damage


def _yaml(text):
    return lambda path, rng: path.write_text(text)


one = lambda dtype, shape, *at: {"a": {"dtype": dtype, "shape": shape, "data_offsets": at}}
OF = {  # by the ending of a file
    ".json": {f"value {i}": _leaf for i in range(12)},
    ".jsonl": {f"value {i}": _leaf for i in range(8)},
    ".csv": {f"cell {i}": _cell for i in range(12)},
    ".png": {
        "60000 x 60000": _image_of(60_000, 60_000),
        "0 x 0": _image_of(0, 0),
        "1 x 1": _image_of(1, 1),
        "2**31": _image_of(2**31 - 1, 1),
    },
    ".tar": {
        "members outside": _archive(("../../x.png", tarfile.REGTYPE, 0, b"x")),
        "absolute": _archive(("/etc/x.png", tarfile.REGTYPE, 0, b"x")),
        "links": _archive(("x.png", tarfile.SYMTYPE, 0, b""), ("y.png", tarfile.LNKTYPE, 0, b"")),
        "devices": _archive(("x.png", tarfile.CHRTYPE, 0, b"")),
        "a size of terabytes": _archive(("x.png", tarfile.REGTYPE, 1, b"x")),
        "no image": _archive(("x.png", tarfile.REGTYPE, 0, b"x"), ("x.json", b"0", 0, b"[")),
    },
    ".npz": {
        "bomb": _bomb,
        "pickles": _arrays(lambda a, rng: np.array([{"a": 1}], object)),
        "text": _arrays(lambda a, rng: np.array(["a", "b"])),
        "scalar": _arrays(lambda a, rng: np.float32(3)),
        "nothing": _arrays(lambda a, rng: a[:0] if a.ndim else a),
        "nan": _arrays(lambda a, rng: np.full(a.shape, np.nan, np.float32)),
        "inf": _arrays(lambda a, rng: np.full(a.shape, np.inf, np.float64)),
        "negative": _arrays(lambda a, rng: -np.ones(a.shape, np.int64)),
        "complex": _arrays(lambda a, rng: np.full(a.shape, 1j)),
        "one more axis": _arrays(lambda a, rng: a[None]),
        "bool": _arrays(lambda a, rng: np.ones(a.shape, bool)),
        "large ids": _arrays(lambda a, rng: np.full(a.shape, 2**40)),
    },
    ".safetensors": {
        "a long header": lambda path, rng: path.write_bytes(struct.pack("<Q", 2**62) + b"{}"),
        "deep": _tensors(b"[" * 50_000),
        "beyond": _tensors(one("F32", [10**9], 0, 4 * 10**9)),
        "negative": _tensors(one("F32", [-4], 0, 16)),
        "odd type": _tensors(one("Q9", [4], 0, 16)),
        "other tensors": _tensors(one("F32", [4], 0, 16)),
        "none": _tensors({}),
    },
    ".yaml": {
        "aliases": _yaml("a: &a [x, x]\n" + "".join(f"k{i}: [*a, *a]\n" for i in range(9))),
        "python": _yaml("!!python/object/apply:os.system ['true']"),
        "deep": _yaml("[" * 5000),
        "list": _yaml("- 1\n- 2\n"),
        "number": _yaml("3\n"),
        "no target": _yaml("model: {params: {}}\n"),
        "nan": _yaml("model: {target: .nan, params: 3}\n"),
        "odd": _yaml("model:\n  target: [x]\n  params: {first_stage_config: 7}\n"),
    },
}
IS_TEXT = (".json", ".jsonl", ".csv", ".txt", ".yaml", ".py", "")


def of(path: pathlib.Path) -> dict:
    """{name: (damage, whether no command may bear it)} of a file."""
    found = {name: (make, True) for name, make in (PLACES | CONTENTS).items()}
    if path.suffix in (".txt", ".csv"):  # half of a list is one, too
        found["half"] = CONTENTS["half"], False
    if path.suffix == ".tar":  # zeros after its end are padding
        found["enormous"] = CONTENTS["enormous"], False
    found |= {name: (make, False) for name, make in (SUBTLE | OF.get(path.suffix, {})).items()}
    if path.suffix in IS_TEXT:
        found |= {name: (make, False) for name, make in TEXT.items()}
    if path.suffix in (".json", ".jsonl"):
        as_text = lambda text: lambda path, rng: path.write_text(text)
        found |= {f"is {text[:9]!r}": (as_text(text), text != "{}") for text in TEXTS}
    return found
