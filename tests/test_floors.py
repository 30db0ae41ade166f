"""Who may import whom, read from the syntax trees: kernels can be lifted out, imports stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
HEAVY = {"numba", "sklearn", "scipy", "cupy", "PIL", "pooch", "matplotlib", "safetensors", "rich", "typer"}

# Each module of fastdigit/ may import the modules of lower floors, and its neighbours only as
# listed. Kernels (0 and 1) are checked apart.
FLOORS = [
    {"errors", "files", "schema", "streams"},
    {"layout", "backend", "inputs", "probabilities", "steps"},
    {
        "network",
        "attacks",
        "optimizers",
        "options",
        "schedules",
        "datasets",
        "log",
        "evaluation",
        "augmentation",
        "corruptions",
        "groups",
        "calibration",
        "committee",
    },
    {"checkpoint", "training", "progress", "robust"},
    {"estimator", "plots", "plots_limits", "runs", "info"},
    {"commands", "cli", "__main__", "__init__"},
]
FLOOR_OF = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}


def sources(folder):
    return sorted(path for path in (PROJECT / folder).rglob("*.py"))


def package_of(path):
    """The parts of the installed package that a file belongs to: ("fastdigit", "kernels", "matmul")."""
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return (() if parts[0] == "fastdigit" else ("fastdigit",)) + parts[:-1]


def imports(path, top_level_only=False):
    """The absolute names of all modules that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    deferred = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    not_at_import = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, deferred)
        or (isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING")
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if top_level_only and id(node) in not_at_import:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package_of(path)[: len(package_of(path)) - node.level + 1] if node.level else ()
            module = ".".join((*base, *(node.module or "").split("."))).strip(".")
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def ids(path):
    return str(path.relative_to(PROJECT))


@pytest.mark.parametrize("path", sources("kernels"), ids=ids)
def test_kernels_import_nothing_of_the_layer_above(path):
    for name in imports(path):
        if name.startswith(("fastdigit", "kernels", "bench")):
            assert name.startswith("fastdigit.kernels."), f"{ids(path)} imports {name}"


@pytest.mark.parametrize("path", sources("kernels"), ids=ids)
def test_operations_import_only_what_is_common(path):
    operation = path.relative_to(PROJECT / "kernels").parts[0]
    for name in imports(path):
        if name.startswith("fastdigit.kernels."):
            other = name.split(".")[2]
            whole = operation in ("epoch", "inference")  # these are built from the others
            assert whole or other in {"common", operation}, f"{ids(path)} imports {name}"


@pytest.mark.parametrize("path", sources("fastdigit"), ids=ids)
def test_the_layer_imports_downwards_only(path):
    mine = path.relative_to(PROJECT / "fastdigit").with_suffix("").parts[0]
    for name in imports(path, top_level_only=True):
        parts = name.split(".")
        if parts[0] != "fastdigit" or len(parts) == 1 or parts[1] == "kernels":
            continue
        if parts[1] in FLOOR_OF:
            assert FLOOR_OF[parts[1]] <= FLOOR_OF[mine], f"{ids(path)} imports {name}"
        commands = mine == "cli" and name.startswith("fastdigit.bench.commands")
        assert parts[1] != "bench" or commands, f"{ids(path)} imports {name}"


def test_every_module_has_its_floor():
    modules = {
        path.relative_to(PROJECT / "fastdigit").with_suffix("").parts[0] for path in sources("fastdigit")
    }
    assert modules == set(FLOOR_OF)


@pytest.mark.parametrize("path", [*sources("fastdigit"), PROJECT / "bench" / "commands.py"], ids=ids)
def test_heavy_packages_are_imported_where_they_are_used(path):
    allowed = {"estimator.py": {"sklearn"}}.get(path.name, set())
    if path.name in ("cli.py", "commands.py") or path.parent.name == "commands":
        allowed = {"typer"}
    found = {name.split(".")[0] for name in imports(path, top_level_only=True)} & HEAVY
    assert found <= allowed


def test_only_common_cuda_may_import_numba_cuda():
    for path in [*sources("kernels"), *sources("fastdigit"), *sources("bench")]:
        if path != PROJECT / "kernels" / "common" / "cuda.py":
            assert not any(name.startswith("numba.cuda") for name in imports(path)), ids(path)


def test_import_loads_nothing_heavy():
    code = (
        "import sys, fastdigit as fd; fd.Network; fd.fit; fd.load_mnist; fd.evaluate; "
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_is_there():
    import fastdigit as fd

    for name in fd.__all__:
        assert getattr(fd, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        fd.nonsense  # noqa: B018
