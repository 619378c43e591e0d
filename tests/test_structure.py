"""The house as docs/design.md draws it: nothing imports upwards, private names stay at home, optional packages away.

Sources are parsed, not imported, so an import inside a function or under TYPE_CHECKING counts like any other.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DESIGN = ROOT / "docs" / "design.md"
TESTS = {path.name for path in (ROOT / "tests").rglob("*.py")}

# Rooms and flat files, lowest first, line by line and from left to right: each may import what stands before it, and
# what stands in the same room. docs/design.md has the same, and the reasons.
DRAWING = """
version errors extras files yaml_text interrupts openmp remote
patches containers decoders audio
pooling config waveform fbank remembering kernels layers attention encoder freezing backbone
weights
protocol labels abstention model tokenizers other_models
onnx loading
data batching
plans decoding_ahead inference arrays tagging embedder
tables search plots evaluation heads description distributed maps
training
torchbeats
integrations serve cli __main__
"""
ORDER = DRAWING.split()

CORE = {"av", "huggingface_hub", "numpy", "pyarrow", "rich", "safetensors", "soundfile", "soxr", "torch", "typer"}
CORE |= {"yaml"}
OPTIONAL = {
    "braceexpand",
    "datasets",
    "fastapi",
    "fsspec",
    "gradio",
    "lance",
    "lightning",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "openvino",
    "ray",
    "sklearn",
    "transformers",
    "umap",
    "uvicorn",
}
# What whole rooms are for, which nothing imports at its top but the room itself.
OPTIONAL_ROOMS = {"training": {"lightning"}, "serve": {"fastapi", "gradio", "pydantic", "starlette", "uvicorn"}}

MODELS = {"AcousticTokenizer", "Backbone", "BEATs", "OnnxModel", "RandomProjectionTokenizer", "Tokenizers"}
LONGEST_BODY = 60  # lines of a command


def sources(folder: Path, package: str) -> dict[str, str]:
    """``{dotted name: text}`` of all modules in a folder."""
    result = {}
    for path in sorted(folder.rglob("*.py")):
        parts = [*path.relative_to(folder).with_suffix("").parts]
        name = ".".join([package, *parts] if package else parts)
        result[name.removesuffix(".__init__")] = path.read_text("utf-8")
    return result


OURS = sources(ROOT / "src" / "torchbeats", "torchbeats")
USERS = {
    name: text
    for folder in ("recipes", "benchmarks", "examples")
    for name, text in sources(ROOT / folder, folder).items()
}


def imports(text: str, modules: dict[str, str]) -> Iterator[tuple[str, str | None]]:
    """Every import in a text: the module, and the name that is taken out of it, if any that is no module."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                yield (module, None) if module in modules else (str(node.module), alias.name)


def graph(modules: dict[str, str]) -> dict[str, set[str]]:
    """Which module imports which, among these."""
    return {
        name: {target for target, _ in imports(text, modules) if target in modules} for name, text in modules.items()
    }


def room(module: str) -> str:
    """The room, or flat file, that a module is in; the package itself is one."""
    return module.split(".")[1] if "." in module else module


def upward(modules: dict[str, str]) -> list[str]:
    """Imports of something that stands above."""
    places = {name: place for place, name in enumerate(ORDER)}
    return [
        f"{name} imports {target}"
        for name, targets in graph(modules).items()
        for target in sorted(targets)
        if room(name) != room(target) and places[room(name)] < places[room(target)]
    ]


def circles(modules: dict[str, str]) -> list[str]:
    """Chains of imports that come back to where they began."""
    edges, result, done = graph(modules), [], set[str]()

    def walk(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            result.append(" → ".join([*above[above.index(name) :], name]))
        elif name not in done:
            for target in sorted(edges[name]):
                walk(target, (*above, name))
            done.add(name)

    for name in edges:
        walk(name, ())
    return result


def private(modules: dict[str, str]) -> list[str]:
    """Names with a leading underscore that are taken out of torchbeats from elsewhere."""
    result = []
    for name, text in modules.items():
        tree, bound = ast.parse(text), set[str]()
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                module = getattr(node, "module", None)
                for alias in node.names:
                    dotted = f"{module}.{alias.name}" if module else alias.name
                    if dotted.split(".")[0] == "torchbeats":
                        bound.add((alias.asname or alias.name).split(".")[0])
                        result += [f"{name} imports {dotted}" for part in dotted.split(".") if is_private(part)]
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                base = ast.unparse(node.value).split(".")[0]
                result += [f"{name} uses {ast.unparse(node)}"] if base in bound else []
    return result


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in ("_asdict", "_fields", "_replace")


def imported_at_the_top(text: str) -> Iterator[str]:
    """Packages that importing this module imports; those that only a type checker sees left out."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).split(".")[0]
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(ast.parse(text))


def optional_at_the_top(modules: dict[str, str]) -> list[str]:
    """Imports at the top of a module of packages that need not be installed."""
    result = []
    for name, text in modules.items():
        known = CORE | sys.stdlib_module_names | {"torchbeats"} | OPTIONAL_ROOMS.get(room(name), set())
        if room(name) == "integrations":  # a file is for those who have its neighbour
            known = known | {name.split(".")[2]} if name.count(".") > 1 else known
        result += [f"{name} imports {package}" for package in imported_at_the_top(text) if package not in known]
    return result


def class_tests(modules: dict[str, str]) -> list[str]:
    """Where it is asked what class a model is of."""
    result = []
    for name, text in modules.items():
        for node in ast.walk(ast.parse(text)):
            asked: list[ast.AST] = []
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
                asked = [*node.args[1:]]
            elif isinstance(node, ast.MatchClass):
                asked = [node.cls]
            elif isinstance(node, ast.Compare) and ast.unparse(node.left).startswith("type("):
                asked = [*node.comparators]
            names = {leaf.id for part in asked for leaf in ast.walk(part) if isinstance(leaf, ast.Name)}
            names |= {leaf.attr for part in asked for leaf in ast.walk(part) if isinstance(leaf, ast.Attribute)}
            result += [f"{name}: {ast.unparse(node)}"] if names & MODELS else []
    return result


def long_bodies(modules: dict[str, str]) -> list[str]:
    """Functions whose body, without the docstring, has too many lines."""
    result = []
    for name, text in modules.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                result += [f"{name}.{node.name}: {lines} lines"] if lines > LONGEST_BODY else []
    return result


# --- the package


def test_every_module_has_its_place():
    homeless = sorted({room(name) for name in OURS} - set(ORDER))
    assert not homeless, f"Give {', '.join(homeless)} a place in ORDER, and a line in docs/design.md."


def test_the_page_about_the_design_is_true():
    """It draws the same picture, has a word for every room and flat file, and names no file that is not there."""
    page = DESIGN.read_text("utf-8")
    assert f"```text{DRAWING}```" in page
    text = page.replace(f"```text{DRAWING}```", "")
    files = {path.name for path in (ROOT / "src").rglob("*.py")}
    rooms = {room(name) for name in OURS} - {"torchbeats", "__main__"}
    assert sorted(name for name in rooms if not {f"`{name}.py`", f"`{name}/`"} & set(re.findall("`[^`]+`", text))) == []
    named = re.findall(r"`(?:[a-z_]+/)*([A-Za-z_]+\.py)`", text)
    assert sorted(name for name in named if name not in files | {"NAME.py", *TESTS}) == []


def test_nothing_imports_upwards():
    assert upward(OURS) == []


def test_nothing_imports_in_circles():
    assert circles(OURS) == []


def test_the_network_knows_nothing_of_files():
    network = {"fbank", "waveform", "layers", "kernels", "attention", "encoder", "backbone", "model", "tokenizers"}
    edges = {(room(name), room(target)) for name, targets in graph(OURS).items() for target in targets}
    assert {edge for edge in edges if edge[0] in network and edge[1] in {"audio", "decoders", "data", "files"}} == set()


def test_nobody_imports_what_stands_at_the_top():
    """Neighbours, the server and commands are for users; the server is started by its command."""
    top = {"integrations", "serve", "cli"}
    allowed = {("__main__", "cli"), ("cli", "serve")}
    edges = {(room(name), room(target)) for name, targets in graph(OURS).items() for target in targets}
    assert {edge for edge in edges if edge[1] in top and edge[0] != edge[1]} <= allowed


def test_no_module_takes_private_names_of_another():
    assert private(OURS) == []


def test_optional_packages_are_imported_where_they_are_used():
    assert optional_at_the_top(OURS) == []


def test_models_are_asked_for_outputs_not_for_their_class():
    rest = {name: text for name, text in OURS.items() if name not in {"torchbeats.loading"}}
    assert class_tests(rest) == []


def test_commands_fit_a_screen():
    assert long_bodies({name: text for name, text in OURS.items() if room(name) == "cli"}) == []


def test_no_optional_package_comes_with_the_import():
    code = f"""
import sys
import torchbeats, torchbeats.cli, torchbeats.evaluation.probe
roots = {{name.split(".")[0] for name in sys.modules}}
print(*sorted(roots & {OPTIONAL!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# --- those who use it


def test_recipes_benchmarks_and_examples_use_public_names_only():
    assert private(USERS) == []


def test_no_test_imports_another():
    tests = sources(ROOT / "tests", "")
    files = {name.split(".")[-1] for name in tests if name.split(".")[-1].startswith("test_")}
    said = [
        f"{name} imports {module}"
        for name, text in tests.items()
        for module, _ in imports(text, tests)
        if module in files
    ]
    assert said == []


# --- the rules themselves

WRONG = {
    "upwards": (
        upward,
        {"torchbeats.kernels": "def f():\n    from torchbeats.cli import main", "torchbeats.cli": "main = 1"},
    ),
    "upwards, for a type checker": (
        upward,
        {"torchbeats.audio": "if TYPE_CHECKING:\n    from torchbeats import tagging", "torchbeats.tagging": ""},
    ),
    "a circle": (
        circles,
        {"torchbeats.data.a": "from torchbeats.data import b", "torchbeats.data.b": "import torchbeats.data.a"},
    ),
    "a private name": (private, {"recipe": "from torchbeats.tagging import _kept"}),
    "a private module": (private, {"recipe": "from torchbeats._new.tags import kept"}),
    "a private attribute": (private, {"recipe": "from torchbeats import tagging\ntagging._kept()"}),
    "an optional package": (
        optional_at_the_top,
        {"torchbeats.tagging": "try:\n    import sklearn.metrics\nexcept: pass"},
    ),
    "another's neighbour": (optional_at_the_top, {"torchbeats.integrations.hear": "import transformers"}),
    "isinstance": (class_tests, {"torchbeats.plans": "isinstance(model, (Tensor, torchbeats.BEATs))"}),
    "a match": (class_tests, {"torchbeats.plans": "match model:\n    case BEATs(cfg=cfg): pass"}),
    "its type": (class_tests, {"torchbeats.plans": "type(model) is Tokenizers"}),
    "a long command": (long_bodies, {"torchbeats.cli.x": "def f():\n    'What it does.'\n" + "    x = 1\n" * 61}),
}
RIGHT = {
    "downwards": (upward, {"torchbeats.cli": "from torchbeats.kernels import linear", "torchbeats.kernels": ""}),
    "one's own room": (upward, {"torchbeats.data.a": "from torchbeats.data import b", "torchbeats.data.b": ""}),
    "names of its own, and of Python": (
        private,
        {"recipe": "import torchbeats\ntorchbeats.__version__\nself._own\ntorchbeats.Tags._fields"},
    ),
    "in a function": (optional_at_the_top, {"torchbeats.tagging": "def f():\n    import sklearn"}),
    "for a type checker": (optional_at_the_top, {"torchbeats.tagging": "if TYPE_CHECKING:\n    import sklearn"}),
    "its own neighbour": (optional_at_the_top, {"torchbeats.integrations.transformers": "import transformers"}),
    "no model": (class_tests, {"torchbeats.plans": "isinstance(layer, str) and type(x) is int"}),
    "a command": (long_bodies, {"torchbeats.cli.x": "def f():\n    'What it does.'\n" + "    x = 1\n" * 60}),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_seen(name):
    rule, modules = WRONG[name]
    assert len(rule(modules)) == 1


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_let_be(name):
    rule, modules = RIGHT[name]
    assert rule(modules) == []
