"""Which room may import which, and what must not stand anywhere."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOOR = {"hierarchy.timeline", "hierarchy.episode", "hierarchy.layout", "hierarchy.batch"}
ROOMS = (
    "hierarchy.corpus",
    "hierarchy.model",
    "hierarchy.training",
    "hierarchy.control",
    "modules",
    "envs",
    "experiments",
    "tests",
)
TOP_LEVEL = {"hierarchy", "modules", "envs", "experiments", "tests"}
MAY_IMPORT = {
    "floor": FLOOR,
    "modules": {"modules"},
    "hierarchy.corpus": FLOOR | {"hierarchy.corpus"},
    "hierarchy.model": FLOOR | {"hierarchy.model", "modules"},
    "hierarchy.training": FLOOR | {"hierarchy.training", "hierarchy.model", "hierarchy.corpus", "modules"},
    "hierarchy.control": FLOOR | {"hierarchy.control", "hierarchy.model", "hierarchy.corpus", "modules"},
    "envs": FLOOR | {"envs"},
    "experiments": FLOOR | {"hierarchy", "modules", "envs", "experiments"},
    "tests": TOP_LEVEL,
}
WITHOUT_JAX = {"floor", "hierarchy.corpus", "envs"}
JAX = {"jax", "jaxlib", "haiku", "optax", "chex", "orbax"}
CODE_FROM_DISK = {"pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}


def sources() -> list[Path]:
    """Returns every Python file of ours."""
    return sorted(path for top in TOP_LEVEL for path in (ROOT / top).rglob("*.py"))


def module(path: Path) -> str:
    """Returns the dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(name: str) -> str:
    """Returns the room that a module stands in."""
    if name in FLOOR or name == "hierarchy":
        return "floor"
    return next((room for room in ROOMS if name == room or name.startswith(room + ".")), f"none (of {name})")


def imported(tree: ast.AST) -> list[str]:
    """Returns the dotted names that a file imports, wherever the statement stands."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return names


def within(name: str, allowed: set[str]) -> bool:
    """Returns whether a dotted name is one of these modules or stands inside one."""
    return any(name == one or name.startswith(one + ".") for one in allowed)


def forbidden_imports(name: str, text: str) -> list[str]:
    """Returns the imports of a module that the table does not allow."""
    stands_in = room(name)
    found = []
    for other in imported(ast.parse(text)):
        top = other.split(".")[0]
        if (top in TOP_LEVEL and not within(other, MAY_IMPORT[stands_in])) or top == "":
            found.append(other)
        if (stands_in in WITHOUT_JAX and top in JAX) or top in CODE_FROM_DISK:
            found.append(other)
    return found


def dotted(node: ast.AST) -> str:
    """Returns `a.b.c` for such an expression, else the last part of it."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}".lstrip(".")
    return node.id if isinstance(node, ast.Name) else ""


def runs_code_from_data(text: str) -> list[str]:
    """Returns the calls of a file that could execute what they read."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        keywords = {word.arg: word.value for word in node.keywords}
        pickled = keywords.get("allow_pickle")
        if called in {
            "eval",
            "exec",
            "builtins.eval",
            "builtins.exec",
            "torch.load",
            "yaml.load",
            "yaml.unsafe_load",
            "yaml.full_load",
        }:
            found.append(f"line {node.lineno}: {called}")
        if pickled is not None and not (isinstance(pickled, ast.Constant) and pickled.value is False):
            found.append(f"line {node.lineno}: {called} with allow_pickle")
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_room_may(path):
    assert room(module(path)) in MAY_IMPORT, f"{path} stands in no room"
    assert forbidden_imports(module(path), path.read_text()) == []


def circle_of(uses: dict[str, set[str]]) -> list[str]:
    """Returns the modules that use each other in a circle, and what only those use; none where there is no circle."""
    left = dict(uses)
    while done := [name for name, others in left.items() if not others & left.keys()]:
        for name in done:
            del left[name]
    return sorted(left)


def test_no_files_import_each_other_in_a_circle():
    names = {module(path): path for path in sources()}
    uses = {
        name: {other if other in names else other.rpartition(".")[0] for other in imported(ast.parse(path.read_text()))} - {name}
        for name, path in names.items()
    }
    assert circle_of(uses) == []
    assert circle_of(uses | {"hierarchy.timeline": {"hierarchy.corpus.packing"}})


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_executes_what_it_reads(path):
    assert runs_code_from_data(path.read_text()) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("hierarchy.corpus.packing", "from hierarchy.model import config"),
        ("hierarchy.corpus.packing", "import jax.numpy as jnp"),
        ("hierarchy.model.network", "from hierarchy.corpus.codecs import encode"),
        ("hierarchy.model.network", "import experiments.rows"),
        ("hierarchy.timeline", "from hierarchy.model import config"),
        ("modules.attention", "from hierarchy.timeline import visible"),
        ("modules.attention", "def late():\n    import envs.loop"),
        ("envs.loop", "from hierarchy.control import agent"),
        ("envs.loop", "from hierarchy import control"),
        ("experiments.train", "import pickle"),
        ("experiments.train", "from . import rows"),
    ],
)
def test_the_table_refuses(name, line):
    assert forbidden_imports(name, line)


@pytest.mark.parametrize(
    "line", ["eval('1')", "np.load(f, allow_pickle=True)", "torch.load(f)", "yaml.load(f)", "np.load(f, allow_pickle=flag)"]
)
def test_what_could_execute_is_refused(line):
    assert runs_code_from_data(line)
    assert not runs_code_from_data("np.load(f, allow_pickle=False); network.eval(); re.compile('a')")


def test_packages_are_empty_and_every_top_level_folder_is_one():
    assert all(path.read_text() == "" for path in sources() if path.name == "__init__.py")
    assert not (ROOT / "setup.py").exists()


def test_the_repository_explains_itself():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    elsewhere = ["../" + "shared", "/work" + "/", "/tmp" + "/"]
    for name in tracked:
        path = ROOT / name
        if path.is_file() and path.suffix in {".py", ".md", ".ipynb", ".toml", ".txt", ".j2", ".html", ""}:
            text = path.read_text(errors="replace")
            assert not [word for word in elsewhere if word in text], name
