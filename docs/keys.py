"""The reference of all keys of a config, docs/keys.md, made from their declarations.

    python docs/keys.py

Types and defaults are those that a config is checked against. The sentence of a key is its comment
in ldm_jax/base/defaults.py. What a config names (a network, a conditioner, ...) says of its own
keys in comments, too, or in its docstring as `key: sentence`.
"""

import ast
import dataclasses
import inspect
import io
import pathlib
import re
import sys
import tokenize

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from ldm_jax import cli
from ldm_jax.base import defaults, values
from ldm_jax.data import conditions as makers
from ldm_jax.engine import optim
from ldm_jax.runs import conditions, keys
from ldm_jax.shell import registries
from ldm_jax.stages.sampling import Sampling

PAGE = pathlib.Path(__file__).with_suffix(".md")
HEAD = """\
# The keys of a config

Written by `python docs/keys.py` from the declarations in the code. A recipe sets keys
(`config.steps.total = 1000`), and so does the command line (`--config.steps.total=1000`,
`--config.model.mult=1,2,4`). Every value is checked before a device is touched.

"""
# Title, its plural in `ldm list`, the group that has the entries' options.
TITLES = (
    ("Data sources", "sources", None),
    ("Autoencoders", "autoencoders", None),
    ("Bottlenecks", "bottlenecks", None),
    ("Shortcuts", "shortcuts", None),
    ("Losses of the discriminator", "disc_losses", None),
    ("Terms of the autoencoder's loss", "terms", None),
    ("Terms of the discriminator's loss", "disc_terms", None),
    ("Terms of the denoiser's loss", "denoiser_terms", None),
    ("Backbones", "backbones", None),
    ("Conditioners", "conditioners", None),
    ("Degradations", "degradations", None),
    ("Hints", "hints", None),
    ("Holes", "holes", None),
    ("Noise schedules", "schedules", defaults.Process),
    ("Distributions of timesteps", "densities", defaults.Process),
    ("Weights of timesteps", "weights", defaults.SecondStageLoss),
    ("Methods of distillation", "distillations", defaults.Distil),
    ("Adapters", "adapters", defaults.Adapt),
    ("Samplers", "samplers", Sampling),
    ("Time grids", "grids", Sampling),
    ("Rules of guidance", "guidances", Sampling),
    ("Optimizers", "optimizers", defaults.Optimizer),
    ("Learning-rate schedules", "learning_rates", defaults.Optimizer),
    ("Averages of the weights", "averages", None),
)
# Title, the key that names an entry, registry, the group that has the entries' options.
NAMED = [(title, *registries.of(kind), group) for title, kind, group in TITLES]
MODULES = ("model", "conditioners.LABEL")  # groups whose `name` decides of all other keys
# The networks that recipes start from: their defaults, and where the comments of these are.
MODELS = {
    "autoencoder": (defaults.FirstStage.model, "FirstStage.model"),
    "unet": (defaults.SecondStage.model, "SecondStage.model"),
    "dit": (defaults.dit(), "dit"),
    "uvit": (defaults.uvit(), "uvit"),
}
UNSET, ELSEWHERE = inspect.Parameter.empty, object()  # no default; one that the sentence tells


def main(args, overrides):
    cli.refuse_overrides(overrides)
    PAGE.write_text(page())
    print(PAGE)


def page() -> str:
    """The whole reference, Markdown."""
    said, common = comments(inspect.getsource(defaults)), values.declared(defaults.Common)
    parts = [HEAD, "## Both stages\n\n", of_group("", defaults.Common, said)]
    parts += ["## A first stage\n\n", of_group("", defaults.FirstStage, said, common)]
    parts += ["## A second stage\n\n", of_group("", defaults.SecondStage, said, common)]
    parts += ["### `config.sample`\n\n", table("sample", rows_of_sampling())]
    parts += [
        "## The optimizer of each network\n\n",
        of_group("optim.PLAYER", defaults.Optimizer, said),
    ]
    parts += ["## What a config names\n\n"]
    parts += ["Entries of your own can be registered beside these: [extend.md](extend.md).\n\n"]
    for title, path, registry, group in NAMED:
        parts += [f"### {title}\n\n"]
        if path in MODULES:
            made = (of_module(path, name, registry.get(name), said) for name in ours(registry))
            parts += [f"`config.{path}.name` is one of these, the rest its keys.\n\n", *made]
        else:
            parts += [f"What `config.{path}` may name.\n\n", of_entries(path, registry, group)]
    return "".join(parts).rstrip() + "\n"


# What declarations say


def comments(source: str) -> dict[str, str]:
    """{"Class.key": sentence} of a module; of a key of a dict in it {"Class.group.key": sentence}.

    The sentence is the comment on the lines above a key and behind it.
    """
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    notes = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    alone = {row for row, token in notes.items() if token.line.lstrip().startswith("#")}
    found = {}

    def sentence(node):
        rows, row = [node.end_lineno] * (node.end_lineno in notes), node.lineno - 1
        while row in alone:
            rows, row = [row, *rows], row - 1
        return " ".join(notes[row].string.lstrip("# ") for row in rows)

    def visit(node, owner):
        for child in ast.iter_child_nodes(node):
            inner = owner
            if isinstance(child, (ast.ClassDef, ast.FunctionDef)):
                inner = child.name
            elif isinstance(child, ast.AnnAssign):
                inner = f"{owner}.{child.target.id}"
                found[inner] = sentence(child)
            elif isinstance(child, ast.keyword):
                found[f"{owner}.{child.arg}"] = sentence(child)
            visit(child, inner)

    visit(ast.parse(source), "")
    return found


def of_docstring(thing, keys) -> dict[str, str]:
    """{key: sentence} where a docstring says `key: sentence`, `a, b: ` or `a=False: sentence`.

    Base classes count, too. A sentence ends where the next key or the next paragraph begins.
    """
    key, found = rf"(?:{'|'.join(map(re.escape, keys)) or '(?!)'})(?:=\w+)?", {}
    start = re.compile(rf"(?:^|(?<=[.;)] ))({key}(?:(?:, | or ){key})*)(?:, [^:.]*)?: ")
    for owner in inspect.getmro(thing) if inspect.isclass(thing) else (thing,):
        for text in paragraphs(owner):
            places = list(start.finditer(text))
            ends = [place.start() for place in places[1:]] + [len(text)]
            for place, end in zip(places, ends):
                for named in re.split(", | or ", place[1]):
                    name, _, value = named.partition("=")
                    sentence = text[place.end() : end]
                    found.setdefault(name, f"{value}: {sentence}" if value else sentence)
    return found


def of_fields(thing) -> dict[str, str]:
    """{key: sentence} of the comments of a class, of its base classes too."""
    found = {}
    for owner in inspect.getmro(thing):
        if _is_ours(owner):
            said = comments(inspect.getsource(owner))
            own = {
                k: said.get(f"{owner.__name__}.{k}") for k in vars(owner).get("__annotations__", ())
            }
            found = {key: sentence for key, sentence in own.items() if sentence} | found
    return found


def paragraphs(thing) -> list[str]:
    """Those of a docstring, each in one line; one that is empty where there is none."""
    parts = re.split(r"\n\s*\n", inspect.cleandoc(getattr(thing, "__doc__", None) or ""))
    return [" ".join(part.split()) for part in parts]


def ours(registry) -> list[str]:
    """The names of its entries that are part of ldm_jax."""
    return [n for n in registry.names() if _is_ours(registry.get(n))]


# Parts of the page


def of_group(path, group, said, others=()) -> str:
    """A table of the keys of a group but for `others`, then the groups in it."""
    known = {key: kind for key, kind in values.declared(group).items() if key not in others}
    inner = {key: kind for key, kind in known.items() if isinstance(kind, type)}
    rows = [
        (key, kind, getattr(group, key), said[f"{group.__name__}.{key}"])
        for key, kind in known.items()
        if key not in inner
    ]
    parts = [f"### `{_joined('config', path)}`\n\n"]
    parts += [f"{markdown(paragraphs(group)[0])}.\n\n"] * bool(paragraphs(group)[0])
    parts += [table(path, rows)]
    parts += [of_group(_joined(path, key), kind, said) for key, kind in inner.items()]
    return "".join(parts)


def rows_of_sampling() -> list[tuple]:
    """What the flags of `sample` say, too."""
    kinds, fields = values.declared(Sampling), dataclasses.fields(Sampling)
    help = {f.name: f.metadata["help"] for f in fields if f.metadata}
    said = of_docstring(Sampling, kinds) | {k: s[0].lower() + s[1:] for k, s in help.items()}
    return [(f.name, kinds[f.name], f.default, said.get(f.name, "")) for f in fields]


def of_module(path, name, module, said) -> str:
    """The keys of a network or a conditioner: its fields, and what makers of its inputs take."""
    own = conditions.declared(name) if path != "model" else keys.of_network(module)
    given = {p.name: p.default for p in inspect.signature(module).parameters.values()}
    sentences = of_docstring(module, {**given, **own}) | of_fields(module)
    for field in [module.latent_of.get(f, f) for f in getattr(module, "fields", ())]:
        if field in makers.MAKERS.names():
            maker = makers.MAKERS.get(field)
            sentences = of_docstring(maker, maker.options) | sentences
    if name in MODELS:
        group, owner = MODELS[name]
        given |= group
        sentences |= {key: text for key in own if (text := said.get(f"{owner}.{key}"))}
    rows = [
        (key, kind, given.get(key, ELSEWHERE), sentences.get(key, ""))
        for key, kind in own.items()
        if key != "name"
    ]
    return f"#### `{name}`\n\n{markdown(paragraphs(module)[0])}.\n\n{table(path, rows)}"


def of_entries(path, registry, group) -> str:
    """A table of what may be named, with the keys of `group` that each takes.

    An optimizer's further keys, which only a group that names it has, follow.
    """
    known, rows, further = values.declared(group) if group else {}, [], []
    for name in ours(registry):
        entry, own = registry.get(name), registry.options(name) if group else {}
        takes = ", ".join(f"`{key}`" for key in own if key in known)
        rows.append((f"`{name}`", markdown(paragraphs(entry)[0]), takes))
        if registry is optim.OPTIMIZERS:
            kinds, said = values.declared(entry), of_docstring(entry, own)
            other = [key for key in own if key not in known]
            further += [(k, kinds[k], own[k], f"{name}: {said.get(k, '')}") for k in other]
    head = ("name", "what it is", "keys that it takes")
    shown = (
        grid(head, rows) if any(row[2] for row in rows) else grid(head[:2], [r[:2] for r in rows])
    )
    return shown + (table(path, further) if further else "")


def table(path, rows) -> str:
    """Of the keys of the group `path`; rows: (key, type, default, sentence)."""
    head = ("key", "what it may be", "default", "what it says")
    lines = [
        (f"`{key}`", words(_joined(path, key), kind, default), shown(default), markdown(said))
        for key, kind, default, said in rows
    ]
    return grid(head, lines)


def words(path, kind, default) -> str:
    """What a key may be, with a link where it names something."""
    if path == "conditioners":
        return f"labels of yours, each with the keys of one of the {link('Conditioners')}"
    if path == "optim":
        return "for each network that is trained, [its optimizer](#configoptimplayer)"
    if path == "sample":
        return "[how is drawn](#configsample)"
    named = {default["name"]} if path == "model" else set()
    named |= {*default} if weighed(kind) and isinstance(default, dict) else set()
    for title, where, registry, _ in NAMED:
        if where == path and named <= {*registry.names()}:
            what = "the keys of one of the" if path == "model" else "one of the"
            return f"{'weights of the' if weighed(kind) else what} {link(title)}"
    said = (kind.words if kind else "any value").replace(values.Text().words, "text")
    return markdown(re.sub(r"^an? ", "", said).replace("finite ", ""))


def weighed(kind) -> bool:
    """Whether a key holds numbers by the names of entries."""
    return isinstance(kind, values.Mapping) and kind.each is not None


def link(title: str) -> str:
    """A link to the heading `title` of the page."""
    slug = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
    return f"[{title[0].lower()}{title[1:]}](#{slug})"


def shown(default) -> str:
    """A default value."""
    if default is UNSET:
        return "must be given"
    if isinstance(default, dict) and "name" in default:
        default = default["name"]
    if isinstance(default, dict):
        numbers = {key: value for key, value in default.items() if isinstance(value, float)}
        return ", ".join(f"`{k}={v}`" for k, v in numbers.items()) if numbers == default else ""
    return "" if default is ELSEWHERE else f"`{default!r}`".replace("'", '"')


def markdown(text: str) -> str:
    """A sentence without its full stop, and without what Markdown would take for its own."""
    text = re.sub(r"([|*<])(?=[^`]*(?:`[^`]*`[^`]*)*$)", r"\\\1", text).strip().rstrip(";,")
    return text if text.endswith("...") else text.removesuffix(".")


def grid(head, rows) -> str:
    """A table of Markdown."""
    rows = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + "\n"


def _is_ours(thing) -> bool:
    return thing.__module__.startswith("ldm_jax.")


def _joined(path, key) -> str:
    return ".".join(filter(None, (path, key)))


if __name__ == "__main__":
    cli.start(__doc__, {}, main)
