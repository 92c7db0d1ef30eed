"""What no file of ours may do, read from the source: run code or data that came from outside."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted(p for name in ("ldm_jax", "configs", "launch") for p in (ROOT / name).rglob("*.py"))

PICKLES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
# The one reader of torch's pickles: it refuses every name but tensors and plain containers.
READER = ROOT / "ldm_jax" / "base" / "tensorfile.py"
READER_USES = {"pickle.Unpickler", "pickle.UnpicklingError"}

FORBIDDEN = {
    "eval": "runs text as code; parse it (ast.literal_eval, json)",
    "exec": "runs text as code",
    "compile": "makes code of text",
    "yaml.load": "builds any object; yaml.safe_load",
    "yaml.unsafe_load": "builds any object; yaml.safe_load",
    "yaml.full_load": "builds objects; yaml.safe_load",
    "os.system": "goes through a shell; subprocess with a list of arguments",
    "os.popen": "goes through a shell; subprocess with a list of arguments",
    "subprocess.getoutput": "goes through a shell; subprocess.run with a list of arguments",
    "subprocess.getstatusoutput": "goes through a shell; subprocess.run with a list of arguments",
    "shutil.unpack_archive": "writes where the archive says; read member by member",
    "tempfile.mktemp": "another process can take the name first; tempfile.mkdtemp",
}
ANY_OBJECT = {
    "extractall": "writes where the archive says; read member by member",
    "extract": "writes where the archive says; read member by member (ZipFile.open, extractfile)",
}


def dotted(node) -> str:
    """`np.random.default_rng` of the nodes that say so; "" where it begins with no name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def keyword(call: ast.Call, name: str):
    """The value of a keyword argument where it is written as a constant; else None."""
    values = [k.value for k in call.keywords if k.arg == name]
    return getattr(values[0], "value", None) if values else None


def offences(tree: ast.Module, reader: bool = False):
    """(line, what is wrong) of every forbidden import, name and call."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names} & PICKLES
            if names - ({"pickle"} if reader else set()):
                yield line, f"imports {names.pop()}: it runs what it reads"
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if node.module.split(".")[0] in PICKLES or name in FORBIDDEN:
                    yield line, f"imports {name}: name its module where it is used, if at all"
        elif isinstance(node, ast.Attribute):
            name = dotted(node)
            if name.split(".")[0] in PICKLES and name not in READER_USES:
                yield line, f"uses {name}: it runs what it reads"
        elif isinstance(node, ast.Call):
            yield from ((line, problem) for problem in of_call(node))


def of_call(call: ast.Call):
    name, method = dotted(call.func), getattr(call.func, "attr", "")
    if name in FORBIDDEN:
        yield f"{name}: {FORBIDDEN[name]}"
    if method in ANY_OBJECT:
        yield f".{method}: {ANY_OBJECT[method]}"
    if name in READER_USES:
        yield f"{name}() takes every class; subclass it with find_class"
    if method == "load" and name.startswith("torch.") and keyword(call, "weights_only") is not True:
        yield f"{name} without weights_only=True runs the file"
    for flag in ("shell", "allow_pickle", "trust_remote_code"):
        if any(k.arg == flag for k in call.keywords) and keyword(call, flag) is not False:
            yield f"{name or method} with {flag}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_from_outside_is_run(path):
    found = offences(ast.parse(path.read_text()), reader=path == READER)
    assert not [f"{path.relative_to(ROOT)}:{line} {problem}" for line, problem in found]


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import load",
        "import pickle.x as p",
        "pickle.load(f)",
        "pickle.Unpickler(f).load()",
        "eval('1')",
        "exec(text)",
        "yaml.load(f)",
        "from yaml import load",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "subprocess.run('ls', shell=flag)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.serialization.load(f)",
        "np.load(f, allow_pickle=True)",
        "tarfile.open(f).extractall()",
        "archive.extract(member, folder)",
        "shutil.unpack_archive(f)",
    ],
)
def test_the_reading_finds(code):
    assert list(offences(ast.parse(code)))


def test_the_reading_lets_pass_what_is_safe():
    safe = "torch.load(f, weights_only=True); np.load(f, allow_pickle=False); model.eval(); "
    safe += "re.compile('x'); yaml.safe_load(f); subprocess.run(['ls'], shell=False)"
    assert not list(offences(ast.parse(safe)))


def test_the_reader_of_pickles_chooses_every_class_itself():
    tree = ast.parse(READER.read_text())
    (own,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and "pickle.Unpickler" in map(dotted, node.bases)
    )
    assert "find_class" in {node.name for node in own.body if isinstance(node, ast.FunctionDef)}
