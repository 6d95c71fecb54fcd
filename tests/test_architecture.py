"""The shape of the package: imports go one way, public names are documented.

Each check is a function of sources (or of a package on a path) that returns what is
wrong. One test runs it on the package, its twin on a small fake that must be caught.
"""

from __future__ import annotations

import ast
import doctest
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType

import pytest

import captum_extremal
import captum_extremal.benchmark
import captum_extremal.peers

PACKAGE = "captum_extremal"
ROOT = Path(captum_extremal.__file__).parent

# A module imports from lower tiers only, never from its own. A room counts as one
# module here; inside it, imports are free, save that no two may import each other.
TIERS = (
    {"_base"},
    {"masks", "perturbations", "curve"},
    {"solvers"},
    {"results", "sites"},
    {"visualization", "metrics", "models"},
    {"page"},
    {"report"},
    {"attribution", "channels", "extremality"},
    {"presets"},
    {"extremal", "channel", "layer"},
    {"methods", "insights"},
    {"peers", "benchmark"},
    {"cli"},
    {"__init__", "__main__"},
)
TIER = {name: level for level, names in enumerate(TIERS) for name in names}

# Data that calls what is done with it: methods of a result whose work stands above it,
# each by an import inside the method.
UPWARD = {("results", "page"), ("results", "extremality")}

# Who may use these modules, whatever the tiers allow: what runs a caller's model with
# Captum's targets (`metrics`: insertion and deletion).
USERS = {
    "_base.captum_door": {"_base", "solvers", "metrics", "attribution", "extremality"}
    | {"extremal", "channels", "methods"},
    "_base.layer": {"sites", "attribution", "channels", "methods", "cli"},
    "_base.model": {"_base", "attribution", "extremal", "channels", "methods"}
    | {"metrics"},
    "_base.skipping": {"_base"},
}
# Who may import Captum's public names. Its underscored ones: `captum_door` alone.
CAPTUM_USERS = {"_base", "attribution", "extremal", "channels", "methods", "insights"}
# The solvers turn a problem into masks and scores: no Captum, no plots, no files.
SOLVERS_NEVER = {
    "captum", "io", "json", "matplotlib", "os", "pathlib", "pickle", "PIL",
    "safetensors", "shutil", "sqlite3", "tempfile", "timm", "torchvision",
}  # fmt: skip
# Slow or optional: imported inside functions, save in the pieces at the top, which
# `import captum_extremal` does not load, and the one class that torchmetrics is for.
LAZY = {"jinja2", "matplotlib", "skimage", "timm", "torchmetrics", "torchvision"}
EAGER_ALLOWED = {"benchmark", "cli", "metrics.accumulate"}


# --- reading sources ---


def package_sources() -> dict[str, str]:
    """Dotted name below the package (`solvers.gradient`) -> source."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text("utf-8")
        for path in sorted(ROOT.rglob("*.py"))
    }


def imports_of(name: str, nodes: Iterator[ast.AST]) -> set[str]:
    """Absolute dotted names that the nodes of module `name` import."""
    parts = f"{PACKAGE}.{name}".split(".")
    parent = ".".join(parts[:-1])  # the package that relative imports start from
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), parent)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def all_imports(name: str, source: str) -> set[str]:
    return imports_of(name, ast.walk(ast.parse(source)))


def eager_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """What runs when the module is imported: no function bodies, no TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from eager_nodes(node)


def piece_of(dotted: str) -> str | None:
    """`captum_extremal.solvers.gradient.X` -> `solvers`; None outside the package."""
    package, _, rest = dotted.partition(".")
    if package != PACKAGE:
        return None
    head = rest.partition(".")[0]
    return head if head in TIER else "__init__"


def owner(name: str) -> str:
    """The piece that the module `name` belongs to: its first component."""
    return name.partition(".")[0]


# --- checks on sources ---


def tier_violations(sources: dict[str, str]) -> list[str]:
    """Modules without a tier, and imports that do not go down."""
    wrong = []
    for name, source in sources.items():
        piece = owner(name)
        if piece not in TIER:
            wrong.append(f"{name}: give it a tier in tests/test_architecture.py")
            continue
        tree = ast.parse(source)
        eager = {piece_of(item) for item in imports_of(name, eager_nodes(tree))}
        for target in {piece_of(item) for item in all_imports(name, source)}:
            if target in (None, piece) or TIER[target] < TIER[piece]:
                continue
            if (piece, target) in UPWARD and target not in eager:
                continue
            wrong.append(f"{name} imports {target}, which is not below it")
    return sorted(wrong)


def user_violations(sources: dict[str, str]) -> list[str]:
    """Uses of the doors to Captum and to the caller's model by others."""
    return sorted(
        f"{name} imports {door}"
        for name, source in sources.items()
        for door, users in USERS.items()
        if owner(name) not in users | {"_base"}
        and any(
            f"{item}.".startswith(f"{PACKAGE}.{door}.")
            for item in all_imports(name, source)
        )
    )


def captum_violations(sources: dict[str, str]) -> list[str]:
    """Captum's names where they must not be: underscored, or in the wrong piece."""
    wrong = []
    for name, source in sources.items():
        for item in all_imports(name, source) | captum_attributes(source):
            if item.partition(".")[0] != "captum":
                continue
            if any(part.startswith("_") for part in item.split(".")):
                if name != "_base.captum_door":
                    wrong.append(f"{name} uses {item}: go through captum_door")
            elif owner(name) not in CAPTUM_USERS:
                wrong.append(f"{name} uses {item}")
    return sorted(wrong)


def captum_attributes(source: str) -> set[str]:
    """Chains like `captum._utils.common` that are read off the imported package."""
    chains = {
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
    }
    return {chain for chain in chains if chain.startswith("captum._")}


def solver_violations(sources: dict[str, str]) -> list[str]:
    """What the solvers must not know: Captum, plots, files."""
    wrong = []
    for name, source in sources.items():
        if owner(name) != "solvers":
            continue
        roots = {item.partition(".")[0] for item in all_imports(name, source)}
        wrong += [f"{name} imports {root}" for root in roots & SOLVERS_NEVER]
        calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
        called = {ast.unparse(call.func) for call in calls}
        wrong += [
            f"{name} calls {function}"
            for function in called & {"open", "print", "torch.save", "torch.load"}
        ]
    return sorted(wrong)


def eager_violations(sources: dict[str, str]) -> list[str]:
    """Slow or optional packages imported at the top of a module."""
    return sorted(
        f"{name} imports {root} at its top"
        for name, source in sources.items()
        if not {name, owner(name)} & EAGER_ALLOWED
        for root in LAZY
        & {
            item.partition(".")[0]
            for item in imports_of(name, eager_nodes(ast.parse(source)))
        }
    )


def circles(sources: dict[str, str]) -> list[str]:
    """Modules that import each other when they are imported, along any way."""
    modules = {f"{PACKAGE}.{name}".removesuffix(".__init__"): name for name in sources}
    leads = {name: set() for name in sources}
    for name, source in sources.items():
        for item in imports_of(name, eager_nodes(ast.parse(source))):
            target = modules.get(item) or modules.get(item.rpartition(".")[0])
            leads[name] |= {target} - {None, name}
    reached = {name: set(targets) for name, targets in leads.items()}
    for _ in sources:
        for targets in reached.values():
            targets |= set().union(*(leads[target] for target in targets))
    return sorted(name for name, targets in reached.items() if name in targets)


SOURCE_CHECKS = [
    circles,
    tier_violations,
    user_violations,
    captum_violations,
    solver_violations,
    eager_violations,
]


@pytest.mark.parametrize("check", SOURCE_CHECKS, ids=lambda check: check.__name__)
def test_package_sources(check):
    assert check(package_sources()) == []


def test_package_sources_are_found():
    assert {"__init__"} <= set(package_sources())


def test_a_circle_is_caught():
    sources = {"masks.a": "from .b import x", "masks.b": "from .c import x"}
    assert circles(sources | {"masks.c": "from . import d", "masks.d": ""}) == []
    found = circles(sources | {"masks.c": "from captum_extremal.masks.a import x"})
    assert found == ["masks.a", "masks.b", "masks.c"]
    assert circles(sources | {"masks.c": "def f():\n    from .a import x"}) == []


@pytest.mark.parametrize(
    ("name", "source", "wrong"),
    [
        ("masks.area", "from captum_extremal.solvers import x", "solvers"),
        ("masks.area", "from ..perturbations import x", "perturbations"),
        ("curve", "from . import masks", "masks"),
        ("masks.area", "import captum_extremal.curve", "curve"),
        ("masks.area", "from captum_extremal import MaskGenerator", "__init__"),
        ("masks.area", "def f():\n    from ..extremal import x", "extremal"),
        ("solvers.gradient", "from ..results import x", "results"),
        ("solvers.__init__", "from ..extremal import x", "extremal"),
        ("_base.axes", "if TYPE_CHECKING:\n    from ..masks import x", "masks"),
        ("results.extremal", "from ..page import x", "page"),
        ("results.extremal", "def f():\n    from ..cli import x", "cli"),
    ],
)
def test_an_import_that_does_not_go_down_is_caught(name, source, wrong):
    expected = f"{name} imports {wrong}, which is not below it"
    assert tier_violations({name: source}) == [expected]


def test_a_module_without_a_tier_is_caught():
    wrong = tier_violations({"novelty": ""})
    assert wrong == ["novelty: give it a tier in tests/test_architecture.py"]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("masks.area", "from .edges import largest"),
        ("masks.area", "import torch"),
        ("solvers.gradient", "from .problem import Problem\nfrom ..masks import x"),
        ("solvers.gradient", "from captum_extremal.masks.area import area_count"),
        ("__init__", "from .extremal import ExtremalPerturbation"),
        ("__main__", "from captum_extremal.cli.main import main"),
        ("results.extremal", "def f():\n    from ..page import x"),
    ],
)
def test_an_import_that_goes_down_is_accepted(name, source):
    assert tier_violations({name: source}) == []


@pytest.mark.parametrize("target", ["_base.layer", "_base.model"])
@pytest.mark.parametrize("name", ["solvers.gradient", "results.x", "visualization"])
def test_a_wrong_user_of_a_door_is_caught(name, target):
    source = f"from {PACKAGE}.{target} import x"
    assert user_violations({name: source}) == [f"{name} imports {target}"]
    assert user_violations({"attribution": source}) == []


@pytest.mark.parametrize(
    "source",
    [
        "from captum._utils.common import _run_forward",
        "import captum._utils.common",
        "from captum.attr._utils.attribution import PerturbationAttribution",
        "import captum\nx = captum._utils",
    ],
)
def test_an_underscored_name_of_captum_is_caught(source):
    assert len(captum_violations({"extremal": source})) == 1
    assert captum_violations({"_base.captum_door": source}) == []


@pytest.mark.parametrize("name", ["masks.area", "curve", "solvers.x", "results.x"])
def test_captum_in_the_wrong_piece_is_caught(name):
    source = "from captum.attr import Attribution"
    assert captum_violations({name: source}) == [f"{name} uses captum.attr.Attribution"]
    assert captum_violations({"extremal": source}) == []


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("import captum.attr", "imports captum"),
        ("def f():\n    import matplotlib.pyplot as plt", "imports matplotlib"),
        ("from pathlib import Path", "imports pathlib"),
        ("open('history')", "calls open"),
        ("torch.save(masks, name)", "calls torch.save"),
    ],
)
def test_a_solver_that_knows_too_much_is_caught(source, wrong):
    assert solver_violations({"solvers.x": source}) == [f"solvers.x {wrong}"]
    assert solver_violations({"results.extremal": source}) == []


@pytest.mark.parametrize(
    "source",
    [
        "import matplotlib.pyplot as plt",
        "try:\n    from matplotlib import pyplot\nexcept ImportError:\n    pass",
        "class A:\n    import matplotlib",
    ],
)
def test_an_eager_import_is_caught(source):
    expected = ["visualization imports matplotlib at its top"]
    assert eager_violations({"visualization": source}) == expected
    assert eager_violations({"cli": source}) == []


def test_one_module_may_be_allowed_and_its_neighbours_not():
    source = "from torchmetrics import Metric"
    expected = ["metrics.pointing imports torchmetrics at its top"]
    assert eager_violations({"metrics.pointing": source}) == expected
    assert eager_violations({"metrics.accumulate": source}) == []


@pytest.mark.parametrize(
    "source",
    [
        "def plot():\n    import matplotlib.pyplot as plt",
        "if TYPE_CHECKING:\n    from matplotlib.figure import Figure",
    ],
)
def test_a_lazy_import_is_accepted(source):
    assert eager_violations({"visualization": source}) == []


def test_the_architecture_page_names_every_room():
    page = (ROOT.parent / "CONTRIBUTING.md").read_text("utf-8")
    table = page.partition("## Architecture")[2].partition("The way of the data")[0]
    rooms = {owner(name) for name in package_sources()} - {"__init__", "__main__"}
    assert rooms == {room for room in TIER if f"`{room}`" in table}
    assert rooms | {"__init__", "__main__"} == set(TIER)


# --- what an import pulls in ---

# Captum itself imports matplotlib.pyplot, which opens nothing: a backend is loaded with
# the first figure.
PROBE = """
import importlib, sys
importlib.import_module(sys.argv[1])
found = {"torchvision", "timm", "skimage", "torchmetrics"} & set(sys.modules)
found |= {n for n in sys.modules if n.startswith("matplotlib.backends.backend_")}
found |= {"captum_extremal.benchmark"} & set(sys.modules)
print(*sorted(found), sep="\\n")
"""


def pulled_in(package: str, path: Path) -> list[str]:
    """Optional packages and plotting backends that a fresh `import package` loads."""
    places = [str(path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, package],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.parametrize("name", [PACKAGE, f"{PACKAGE}.metrics"])
def test_the_import_is_light(name):
    assert pulled_in(name, ROOT.parent) == []


@pytest.mark.parametrize("name", ["torchvision", "timm", "torchmetrics"])
def test_a_heavy_import_is_caught(tmp_path, name):
    (tmp_path / f"{name}.py").touch()  # stands for the real one, which is slow to load
    (tmp_path / "heavy.py").write_text(f"import {name}")
    assert pulled_in("heavy", tmp_path) == [name]


@pytest.mark.parametrize(
    ("command", "loads"),
    [("explain", False), ("channels", False), ("benchmark", True)],
)
def test_a_command_loads_what_it_needs(tmp_path, command, loads):
    (tmp_path / "shell.py").write_text(
        "from captum_extremal.cli.main import main\n"
        f"assert main.get_command(None, {command!r}).name == {command!r}"
    )
    found = pulled_in("shell", tmp_path)
    assert (f"{PACKAGE}.benchmark" in found) == loads


def test_a_figure_at_import_is_caught(tmp_path):
    source = "import matplotlib.pyplot as plt\nplt.figure()"
    (tmp_path / "window.py").write_text(source)
    assert "matplotlib.backends.backend_agg" in pulled_in("window", tmp_path)


# --- public names ---


def public_violations(package: ModuleType) -> list[str]:
    """Names in `__all__` that are missing, undocumented or without an example."""
    wrong = []
    if len(package.__all__) != len(set(package.__all__)):
        wrong.append("__all__ names something twice")
    for name in package.__all__:
        if not hasattr(package, name):
            wrong.append(f"{name} is in __all__ and does not exist")
            continue
        value = getattr(package, name)
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue  # a sub-module, or an alias of types: ruff sees to the former
        if not (value.__doc__ or "").strip():
            wrong.append(f"{name} has no docstring")
        elif not doctest.DocTestParser().get_examples(value.__doc__):
            wrong.append(f"{name} has no example that runs as a doctest")
    return wrong


@pytest.mark.parametrize(
    "package", [captum_extremal, captum_extremal.benchmark, captum_extremal.peers]
)
def test_public_names_exist_and_are_documented(package):
    assert public_violations(package) == []


def fake_package(**names: object) -> ModuleType:
    package = ModuleType("fake")
    package.__all__ = sorted(names)
    vars(package).update(names)
    return package


def documented():
    """Return one.

    >>> documented()
    1
    """
    return 1


def without_example():
    """Return one."""
    return 1


def test_a_documented_name_is_accepted():
    assert public_violations(fake_package(documented=documented)) == []


def test_a_name_without_docstring_is_caught():
    package = fake_package(bare=lambda: 1, Bare=type("Bare", (), {}))
    expected = ["Bare has no docstring", "bare has no docstring"]
    assert public_violations(package) == expected


def test_a_name_without_example_is_caught():
    expected = ["without_example has no example that runs as a doctest"]
    assert public_violations(fake_package(without_example=without_example)) == expected


def test_a_missing_name_is_caught():
    package = fake_package(documented=documented)
    del package.documented
    expected = ["documented is in __all__ and does not exist"]
    assert public_violations(package) == expected


def test_a_name_given_twice_is_caught():
    package = fake_package(documented=documented)
    package.__all__ *= 2
    assert public_violations(package) == ["__all__ names something twice"]
