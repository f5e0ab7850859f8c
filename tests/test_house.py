"""The house: who may import whom, one meaning for each name, nothing undeclared, and imports without side effects."""
import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "scnet_minimal"

# From the ground up. A room imports rooms below its own floor, and nothing beside or above it.
FLOORS = (
    ("scnet", "sources", "errors"),
    ("weights", "fuse", "device", "checks", "command_line"),
    ("zoo", "data"),
    ("train",),
    ("detect", "course"),
    ("study",),
    ("train_imagenet", "detection", "benchmark", "coursework", "walkthrough"),
    ("study.__main__",),                            # a command that runs another
)
# scnet.py is the network and knows nobody; its builders ask weights.py for a file only when they are called with one.
LAZY = {("scnet", "weights")}


def modules() -> dict[str, Path]:
    """{"lab.data.batches": path, ...}: every module of the package by its dotted name below scnet_minimal."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {".".join(p.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


def room(module: str) -> str | None:
    """The room of a module; None for the two files that only collect names, the package's and lab's."""
    if module in ("__init__", "lab", ""):
        return None
    name = module.removeprefix("lab.")
    return name if name == "study.__main__" else name.split(".")[0]


def imports(module: str, path: Path) -> list[tuple[str, bool]]:
    """The package's modules that a module imports, and whether it does so inside a function."""
    tree, known = ast.parse(path.read_text(encoding="utf-8")), modules()
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.Lambda)) for n in ast.walk(f)}
    here = [] if module == "__init__" else module.split(".")
    package = here if path.name == "__init__.py" else here[:-1]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = [*package[:len(package) - node.level + 1], *(node.module or "").split(".")]
            elif (node.module or "").split(".")[0] == PACKAGE.name:
                base = node.module.split(".")[1:]
            else:
                continue
            base = ".".join(filter(None, base))
            for alias in node.names:
                deeper = f"{base}.{alias.name}".strip(".")
                target = deeper if deeper in known else base
                if target in known:
                    found.append((target, id(node) in inside))
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found += [(".".join(name[1:]), id(node) in inside) for name in names if name[0] == PACKAGE.name]
    return [(target, lazy) for target, lazy in found if target]


def test_every_module_has_a_room():
    rooms = {name for floor in FLOORS for name in floor}
    assert {room(m) for m in modules()} - {None} == rooms


def test_arrows_point_down():
    floor = {name: i for i, floor in enumerate(FLOORS) for name in floor}
    wrong = []
    for module, path in modules().items():
        own = room(module)
        for target, lazy in imports(module, path) if own else []:
            other = room(target)
            allowed = other in (None, own) or floor[other] < floor[own] or (lazy and (own, other) in LAZY)
            if not allowed:
                wrong.append(f"{module} imports {target}")
    assert not wrong


def test_no_module_imports_itself_by_a_detour():
    graph = {module: {target for target, lazy in imports(module, path) if target != module}
             for module, path in modules().items()}
    for a, b in LAZY:
        graph[a].discard(b)
    done, path = set(), []

    def visit(module: str) -> None:
        assert module not in path, " -> ".join([*path[path.index(module):], module])
        if module not in done:
            path.append(module)
            for target in sorted(graph[module]):
                visit(target)
            path.pop()
            done.add(module)

    for module in graph:
        visit(module)


def test_a_public_name_means_one_thing():
    where: dict[str, list[str]] = {}
    for module, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else \
                [t.id for t in node.targets if isinstance(t, ast.Name)] if isinstance(node, ast.Assign) else []
            for name in names:
                if not name.startswith("_") and name not in ("main", "parser", "work", "COMMAND", "EXAMPLES"):
                    where.setdefault(name, []).append(module)
    assert not {name: found for name, found in where.items() if len(found) > 1}


@pytest.mark.parametrize("path", [pytest.param(p, id=m) for m, p in modules().items()])
def test_a_module_is_one_idea(path):
    drawings = {"glyphs.py", "figures.py", "drawing.py", "toynette.py"}
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= {"scnet.py": 260, "weights.py": 150, "fuse.py": 70}.get(path.name, 300) or path.name in drawings


def test_what_is_imported_is_declared():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = text[text.index("\ndependencies = "):text.index("\n[tool.")]
    declared = {name.lower() for name in re.findall(r'"([A-Za-z][\w-]*)[^"\n]*"', listed)}
    distributions, missing = packages_distributions(), {}
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
                [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {PACKAGE.name}:
                owners = {d.lower().replace("_", "-") for d in distributions.get(name, [name])}
                if not owners & declared:
                    missing.setdefault(name, []).append(module)
    assert not missing


SNAPSHOT = """
import importlib, json, logging, os, sys, warnings
import torch, matplotlib, torchvision, datasets, nbformat, nbclient, nbconvert      # others' own side effects first
def state():
    return {"environment": dict(os.environ), "warnings": [str(f) for f in warnings.filters],
            "rcParams": {k: str(v) for k, v in matplotlib.rcParams.items()}, "threads": torch.get_num_threads(),
            "levels": {n: getattr(l, "level", 0) for n, l in logging.root.manager.loggerDict.items()},
            "inductor": "torch._inductor.config" in sys.modules and sys.modules["torch._inductor.config"].freezing,
            "random": torch.get_rng_state().sum().item(), "backend": matplotlib.get_backend(auto_select=False)}
before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
after = state()
changed = {key: [before[key], after[key]] for key in before
           if key != "levels" and before[key] != after[key]}
changed |= {n: l for n, l in after["levels"].items() if n in before["levels"] and l != before["levels"][n]}
print(json.dumps(changed, default=str))
"""


@pytest.mark.slow
def test_importing_a_module_changes_nothing_in_the_process():
    names = [f"scnet_minimal.{m}" for m in modules() if m != "__init__" and not m.endswith("__main__")]
    run = subprocess.run([sys.executable, "-c", SNAPSHOT, *names], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().splitlines()[-1] == "{}"
