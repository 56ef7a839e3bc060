"""The rooms of the house: who imports whom, what a Run has, how long a file may be."""

import ast
import re
from types import SimpleNamespace

from helpers import ROOT

import common

CORE = {f"core.{file.stem}": file for file in (ROOT / "core").glob("*.py") if file.stem != "__init__"}


def imports(file) -> set[str]:
    """The modules that a file imports anywhere in it, as `core.data` or `common`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names} if node.module == "core" else {node.module}
    return found


def test_core_imports_nothing_from_above():
    above = {file.stem for file in ROOT.glob("*.py")} | {"lab"}
    for name, file in CORE.items():
        assert not {module.split(".")[0] for module in imports(file)} & above, name


def test_core_has_no_circle():
    """Files whose imports are all done are taken away, until none is left."""
    left = {name: imports(file) & CORE.keys() for name, file in CORE.items()}
    while done := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in done}
    assert not left


def test_the_lab_could_be_removed():
    for file in [*ROOT.glob("*.py"), *CORE.values()]:
        assert not any(module.split(".")[0] == "lab" for module in imports(file)), file


def test_plots_and_pages_start_without_torch():
    """A finished run starts both as processes of their own."""
    for name in ("plot", "show"):
        seen, todo = set(), {name}
        while todo:
            module = todo.pop()
            seen.add(module)
            file = CORE.get(module, ROOT / f"{module}.py")
            todo |= {found for found in imports(file) if found in CORE or (ROOT / f"{found}.py").is_file()} - seen
            assert not any(found.split(".")[0] == "torch" for found in imports(file)), file


def test_a_run_has_sixteen_attributes_and_all_are_documented(train, tmp_path):
    runs, init = [], common.Run.__init__

    class Run(common.Run):
        def __init__(self, *args, **how):
            runs.append(self)
            init(self, *args, **how)

    assert train(tmp_path / "run", "--steps", 1, common=SimpleNamespace(**{**vars(common), "Run": Run})) == 0
    documented = re.findall(r"^      (\w+)  ", common.Run.__doc__, re.M)
    assert sorted(vars(runs[0])) == sorted(documented) and len(documented) <= 16


def test_the_first_screen_of_common_is_the_configuration():
    lines = (ROOT / "common.py").read_text().splitlines()
    assert lines.index("class Config:") < 40


def test_there_is_one_threshold_for_right():
    """Nobody but right() compares rewards or scores with a number."""
    pattern = r"(rewards?|scores?)\s*(>=?|<=?)\s*\d"
    files = [*ROOT.glob("*.py"), *CORE.values()]
    found = [line.strip() for file in files for line in file.read_text().splitlines() if re.search(pattern, line)]
    assert found == ["return score > 0.5"]


def test_no_formatter_is_fought():
    files = [file for folder in (".", "core", "lab", "tests") for file in (ROOT / folder).glob("*.py")]
    assert not [file.name for file in files if re.search(r"# fmt: *skip", file.read_text())]
