"""docs/architecture.md, the README's tree and the code say the same."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mammoray"


def table() -> dict[str, tuple[int, bool]]:
    """Module -> (place in the order of data flow, may import Ray), from the table of docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|.*\| (yes)? ?\|$", text, flags=re.MULTILINE)
    return {name: (int(number), bool(ray)) for number, name, ray in rows}


def imports(file: Path) -> tuple[set[str], set[str]]:
    """Modules of the package, and other top-level packages, that a file imports anywhere."""
    own: set[str] = set()
    other: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "mammoray":
            own |= {alias.name for alias in node.names if not alias.name.startswith("__")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mammoray."):
            own.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module:
            other.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            other |= {alias.name.split(".")[0] for alias in node.names}
    return own, other


MODULES = sorted(p.stem for p in PACKAGE.glob("*.py") if p.stem != "__init__")


def test_the_table_lists_every_module_in_a_gapless_order() -> None:
    assert sorted(table()) == MODULES
    assert sorted(number for number, _ in table().values()) == list(range(1, len(MODULES) + 1))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_above_it(module: str) -> None:
    order = table()
    own, _ = imports(PACKAGE / f"{module}.py")
    assert {name for name in own if order[name][0] >= order[module][0]} == set()


@pytest.mark.parametrize("module", MODULES)
def test_only_modules_marked_so_import_ray(module: str) -> None:
    _, other = imports(PACKAGE / f"{module}.py")
    assert ("ray" in other) == table()[module][1]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_declared_dependencies(module: str) -> None:
    # The extras of users too, but not dev, which is the last of them.
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("\ndev = [")[0]
    distributions = {
        "cv2": "opencv-python-headless",
        "mlflow": "mlflow-skinny",
        "PIL": "pillow",
        "sklearn": "scikit-learn",
        "tomli_w": "tomli-w",
    }
    _, other = imports(PACKAGE / f"{module}.py")
    for name in other - set(sys.stdlib_module_names) - {"tomllib"}:
        assert re.search(rf'^  "{distributions.get(name, name)}[\[>]', project, flags=re.MULTILINE), name


def test_every_module_has_its_test_file() -> None:
    tests = {p.stem.removeprefix("test_") for p in (ROOT / "tests").glob("test_*.py")}
    # By config, report, train, space and tune.
    covered_elsewhere = {"checks", "recipe", "figures", "predict", "loop", "saving"}
    covered_elsewhere |= {"draws", "trial", "marker", "results"}
    assert set(MODULES) - tests - covered_elsewhere == set()


def test_the_readme_lists_every_module_and_job() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in [*(f"{m}.py" for m in MODULES), *(p.name for p in (ROOT / "jobs").iterdir() if p.is_file())]:
        assert name in readme, name


def test_a_job_is_short_and_says_how_to_submit_it() -> None:
    for job in (ROOT / "jobs").glob("*.py"):
        text = job.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 40
        assert "ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml" in text
        assert re.search(r"\bSuits\b", text) and re.search(r"\b[Tt]ime\b", text), f"{job.name}: hardware and time"
