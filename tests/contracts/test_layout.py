"""The shape of the repository, as rules: who imports whom, where ray, torch_xla and jax live, how long files may be."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from infra import ray_private
from pipelines.engine.resources import Resources
from tests.programs.places import REPOSITORY
from training.backends.make import BACKENDS
from training.backends.names import Device
from training.config import BadStep, FeedKind, Remat

PACKAGES = ("model", "data", "training", "infra", "pipelines")
MAY_IMPORT = {
    "model": set(),
    "data": set(),
    "infra": set(),
    "training": {"model", "data"},
    "pipelines": {"model", "data", "training", "infra"},
}
ALSO_MAY_IMPORT = {
    # Ray's private parts stand in one file. Ray calls back into training/worker, which subclasses some of them, so they
    # cannot be handed in from pipelines/.
    "training/worker/": {"infra.ray_private"},
}
HOMES = {
    "ray": ("training/worker/", "infra/", "pipelines/"),
    "torch_xla": ("training/backends/xla/",),
    "jax": ("training/backends/xla/", "infra/aot.py"),
    "torch": ("model/", "training/", "infra/", "pipelines/"),  # all but data/
}
MAX_LINES = 400
MAX_BYTES = 1_000_000
# In pieces, so that this file does not hold what it looks for.
ADDRESSES = re.compile(
    "|".join(
        [
            r"\bpy" + r"pi\.(org|io|python)",
            "python" + r"hosted\.org",
            "download" + r"\.pytorch\.org",
            r"(?<!no-emit-)(?<!no-emit-extra-)\b(extra-)?index" + r"-url\b",
            r"--(find-links|trusted" + r"-host)\b",
            r"\b(PIP|UV)_(EXTRA_|DEFAULT_)?IND" + r"EX(_URL)?\b",
        ]
    )
)


def modules(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (REPOSITORY / package).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def imported_by(path: Path) -> Iterator[str]:
    """Every module that the file imports anywhere, at the top, in a function or for type checking only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{relative(path)}:{node.lineno}: a relative import"
            yield node.module or ""


def git(*words: str) -> list[str]:
    if not (REPOSITORY / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr  # check-ignore says 1 where nothing is ignored
    return [name for name in re.split(r"[\0\n]", done.stdout) if name]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_those_below_it(package: str) -> None:
    wrong = [
        f"{relative(path)} imports {name}"
        for path in modules(package)
        for name in imported_by(path)
        if (top := name.partition(".")[0]) in {*PACKAGES, "tests"} - {package} and top not in MAY_IMPORT[package]
        if not any(relative(path).startswith(room) and name in more for room, more in ALSO_MAY_IMPORT.items())
    ]
    assert not wrong


def import_graph() -> dict[str, set[str]]:
    """Module -> modules of ours that it imports anywhere, in functions and for type checking too."""
    names = {
        relative(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__") for path in modules(*PACKAGES)
    }
    graph: dict[str, set[str]] = {}
    for path in modules(*PACKAGES):
        module = relative(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        imported = set(imported_by(path))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                imported |= {f"{node.module}.{alias.name}" for alias in node.names}
        graph[module] = (imported & names) - {module, module.rpartition(".")[0]}
    return graph


def test_no_module_imports_itself_through_others() -> None:
    graph = import_graph()
    while True:  # takes away what imports nothing that is left: a cycle stays
        leaves = {module for module, imported in graph.items() if not imported & graph.keys()}
        if not leaves:
            break
        graph = {module: imported for module, imported in graph.items() if module not in leaves}
    assert graph == {}


def test_beside_the_rooms_of_pipelines_stand_only_two_files() -> None:
    beside = {path.name for path in (REPOSITORY / "pipelines").iterdir() if path.is_file()}
    assert beside == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_imported_only_in_its_home(library: str) -> None:
    wrong = [
        relative(path)
        for path in modules(*PACKAGES)
        if any(name.partition(".")[0] == library for name in imported_by(path))
        and not relative(path).startswith(HOMES[library])
    ]
    assert not wrong


PRIVATE = re.compile(r"\bray(\.\w+)*\.(_\w+|experimental\.internal_kv|core\.generated)|\binternal_kv\b")


def test_private_parts_of_ray_are_named_in_one_file() -> None:
    named = {relative(path) for path in modules(*PACKAGES) if PRIVATE.search(path.read_text())}
    assert named == {"infra/ray_private.py"}


def test_every_private_part_of_ray_is_used_and_still_there() -> None:
    sources = {path: path.read_text() for path in modules(*PACKAGES) if relative(path) != "infra/ray_private.py"}
    script = "from infra import ray_private\nprint([getattr(ray_private, name) for name in ray_private.MODULES])"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    unused = [name for name in ray_private.MODULES if not any(name in source for source in sources.values())]
    assert unused == []


def named_devices(path: Path) -> Iterator[str]:
    """Places of a file's code that spell the name of an accelerator's device."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and node.value in ("xla", "cuda"):
            yield f"{relative(path)}:{node.lineno}"


def test_only_backends_know_devices_by_name() -> None:
    """Everybody else asks a backend's abilities (training/backends/abilities.py)."""
    paths = [path for path in modules(*PACKAGES) if not relative(path).startswith("training/backends/")]
    assert [place for path in paths for place in named_devices(path)] == []


def test_every_device_has_a_backend_that_declares_its_abilities() -> None:
    assert {*BACKENDS, "auto"} == set(get_args(Device))


def test_resources_offer_the_choices_of_training() -> None:
    """Spelled there again, since the command line imports no torch."""
    choices = {"remat": Remat, "feed": FeedKind, "on_bad_step": BadStep}
    for name, allowed in choices.items():
        assert set(get_args(allowed)) <= set(re.findall(r"'(\w+)'", str(Resources.__annotations__[name]))), name


@pytest.mark.parametrize(
    ("names", "blocked"),
    [
        (["data"], ["ray", "torch_xla", "jax", "torch"]),
        pytest.param(["model", "training"], ["ray", "torch_xla", "jax"], marks=pytest.mark.slow),
    ],
    ids=["data", "model and training"],
)
def test_the_core_imports_where_ray_and_torch_xla_are_missing(names: list[str], blocked: list[str]) -> None:
    wanted = [
        relative(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for path in modules(*names)
        if not relative(path).startswith(("training/worker/", "training/backends/xla/"))
    ]
    script = f"import sys, importlib\nfor name in {blocked!r}: sys.modules[name] = None\n"
    script += f"for name in {wanted!r}: importlib.import_module(name)\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_file_of_tests_imports_ray_when_it_is_collected() -> None:
    """Ray reads whether tokens are in use when it is first imported; a session that starts later finds none."""
    imports = []
    for path in [*(REPOSITORY / "tests").rglob("test_*.py"), *(REPOSITORY / "tests").rglob("conftest.py")]:
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imports += [f"{relative(path)}: {name}" for name in names if name.partition(".")[0] == "ray"]
    assert imports == []


def test_no_file_has_more_than_400_lines() -> None:
    lengths = {relative(path): len(path.read_text().splitlines()) for path in modules(*PACKAGES, "tests")}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_module_is_called_utils_or_like_one_of_the_standard_library() -> None:
    taken = sys.stdlib_module_names | {"utils", "helpers", "common", "misc"}
    names = [relative(path) for path in modules(*PACKAGES) if path.stem in taken]
    names += [package for package in (*PACKAGES, "tests") if package in taken]
    assert not names


def test_every_module_says_what_it_is_for() -> None:
    assert [relative(path) for path in modules(*PACKAGES) if not ast.get_docstring(ast.parse(path.read_text()))] == []


def packages_with_public_names() -> list[str]:
    return [
        relative(path.parent).replace("/", ".")
        for path in modules(*PACKAGES)
        if path.name == "__init__.py" and "__all__" in path.read_text()
    ]


@pytest.mark.parametrize("name", packages_with_public_names())
def test_public_names_are_those_in_all(name: str) -> None:
    package = importlib.import_module(name)
    public = {
        key for key, value in vars(package).items() if not key.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public == set(package.__all__)
    assert len(package.__all__) == len(public)


def test_nothing_tracked_is_ignored() -> None:
    assert git("ls-files", "-z", "--cached", "--ignored", "--exclude-standard") == []


def test_no_ignore_pattern_matches_a_package_or_a_file_in_it() -> None:
    """Ray leaves ignored files behind when it ships the working directory."""
    folders = {relative(path.parent) for path in modules(*PACKAGES, "tests")}
    candidates = [*folders, *(f"{folder}/a_new_module.py" for folder in folders), "infra/dashboards/a.json"]
    assert git("check-ignore", "--no-index", *candidates) == []


def test_no_tracked_file_is_over_one_megabyte() -> None:
    sizes = {name: (REPOSITORY / name).stat().st_size for name in git("ls-files", "-z") if (REPOSITORY / name).exists()}
    assert {name: size for name, size in sizes.items() if size > MAX_BYTES} == {}


def test_no_tracked_file_names_a_package_index() -> None:
    addresses = []
    for name in git("ls-files", "-z"):
        path = REPOSITORY / name
        if path.exists() and (hit := ADDRESSES.search(path.read_text(errors="replace"))):
            addresses.append(f"{name}: {hit[0]}")
    assert not addresses


def test_no_variable_has_a_name_that_says_nothing_of_what_it_holds() -> None:
    """Fixtures are variables of the tests that take them, so functions are looked at too."""
    vague = {"one", "found", "told"}
    wrong = []
    for path in modules(*PACKAGES, "tests"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Name(id=name) | ast.arg(arg=name) | ast.FunctionDef(name=name):
                    wrong += [f"{relative(path)}:{node.lineno}: {name}"] if name in vague else []
    assert wrong == []
