"""The examiner: a process that has run a notebook's imports, and runs checks, each in a fork of its own.

    python -m scnet_minimal.lab.course.examine          in notebooks/ of a students' copy; grading.py starts it

A line of JSON in, a line out: first {"imports": [source, ...]} -> {"isolated": bool}, then for each exercise
{"cells", "wanted", "check", "printed", "seconds", "hidden", "scratch"} -> {"message": why it failed, "" if it did not}.

The answers are the student's, all else is the teacher's: they are loaded into a namespace of their own, before each
assert all that the check relies on must be what it was, and print is the check's own.
"""
import ast
import builtins
import json
import os
import secrets
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import UserError
from .answers import check_allowed, linked
from .room import adopt_orphans, can_isolate, run_apart

WATCHED = ("scnet_minimal", "math", "operator", "statistics", "copy")               # modules whose contents must stay


def run_imports(sources: list[str]) -> dict:
    """The namespace that a notebook's first cells make.  Their magics, such as %matplotlib, do nothing here."""
    from IPython.core.inputtransformer2 import TransformerManager

    nothing = types.SimpleNamespace(run_line_magic=lambda *_: None, run_cell_magic=lambda *_: None)
    namespace = {"__name__": "__main__", "get_ipython": lambda: nothing, "print": lambda *_, **__: None}
    for source in sources:
        exec(compile(TransformerManager().transform_cell(source), "<imports>", "exec"), namespace)
    return {name: value for name, value in namespace.items() if name not in ("get_ipython", "print", "__builtins__")}


# --- one exercise -----------------------------------------------------------------------------------------------------

def examine(request: dict, imports: dict) -> str:
    """Why the answers fail the check, "" if they do not."""
    try:
        tree = linked(request["cells"], set(request["wanted"]))
        check_allowed(tree, set(imports) | {"torch"})
    except (UserError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return describe(error)
    intact = guard(imports)
    try:
        own = dict(imports) | {"__name__": "__main__"}
        exec(compile(ast.fix_missing_locations(tree), "<answer>", "exec"), own)
        intact()
        said = run_check(request["check"], imports | {name: own[name] for name in request["wanted"]}, intact)
        intact()
    except BaseException as error:              # also SystemExit and KeyboardInterrupt: they are the student's
        return describe(error)
    if said != request["printed"]:
        return f"the check printed {said.strip()[:100]!r}, not {request['printed'].strip()[:100]!r}"
    return ""


def run_check(source: str, namespace: dict, intact: Callable[[], None]) -> str:
    """Run a check that calls intact() before each assert; what the check itself printed."""
    printed = []

    def say(*values: object, sep: str = " ", end: str = "\n") -> None:
        printed.append(sep.join(map(str, values)) + end)

    class Guard(ast.NodeTransformer):
        def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:
            return [ast.Expr(ast.Call(ast.Name("_intact", ast.Load()), [], [])), node]

    tree = ast.fix_missing_locations(Guard().visit(ast.parse(source)))
    exec(compile(tree, "<check>", "exec"), namespace | {"__name__": "__main__", "_intact": intact, "print": say})
    return "".join(printed)


def describe(error: BaseException) -> str:
    """An error in one line, as a student reads it."""
    try:
        text = " ".join(str(error).split())[:300]
    except BaseException:                       # a __str__ of the student's
        text = ""
    kind = type(error).__name__
    return text if text and kind in ("AssertionError", "NotImplementedError", "UserError") else \
        f"{kind}: {text}" if text else kind


def guard(imports: dict) -> Callable[[], None]:
    """A function that raises UserError once a function, class or module among what checks rely on has been replaced."""
    before = [(owner, name, value, getattr(value, "__code__", None), getattr(value, "__defaults__", None))
              for owner in relied_on(imports) for name, value in list(vars(owner).items())
              if callable(value) or isinstance(value, (types.ModuleType, property, staticmethod, classmethod))]

    def intact() -> None:
        for owner, name, value, code, defaults in before:
            if vars(owner).get(name) is not value or getattr(value, "__code__", None) is not code \
                    or getattr(value, "__defaults__", None) is not defaults:
                raise UserError(f"the answer replaced {owner.__name__}.{name}: look at it yourself")

    return intact


def relied_on(imports: dict) -> Iterator[types.ModuleType | type]:
    """Modules and classes: builtins, the package's, those that the notebook imports, and torch's that tell values."""
    import torch

    modules = [module for name, module in list(sys.modules.items()) if name.split(".")[0] in WATCHED]
    owners = [builtins, torch, torch.Tensor, torch.nn.functional, torch.testing, torch.nn.Module, *modules]
    owners += [value for value in imports.values() if isinstance(value, (types.ModuleType, type))]
    owners += [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    seen = set()
    for owner in owners:
        if isinstance(owner, (types.ModuleType, type)) and id(owner) not in seen:
            seen.add(id(owner))
            yield owner


# --- the process ------------------------------------------------------------------------------------------------------

def serve() -> None:
    """Answer requests until there are no more."""
    lines, out = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)                               # what the imports print is no answer
    adopt_orphans()
    isolated, imports = can_isolate(), None
    for line in lines:
        request = json.loads(line)
        if imports is None:
            imports = run_imports(request["imports"])
            answer = {"isolated": isolated}
        else:
            answer = {"message": ask_apart(request, imports, isolated)}
        print(json.dumps(answer), file=out, flush=True)


def ask_apart(request: dict, imports: dict, isolated: bool) -> str:
    token = secrets.token_hex(16)               # an answer that lacks it is not from examine()

    def work() -> bytes:
        return (token + json.dumps(examine(request, imports))).encode()

    answer, why = run_apart(work, request["seconds"], isolated=isolated, hidden=list(map(Path, request["hidden"])),
                            scratch=Path(request["scratch"]))
    if why:
        return f"stopped after {request['seconds']:g} seconds: is it an endless loop?" if why == "timeout" else why
    if not answer.startswith(token.encode()):
        return "its process answered in the check's place: look at it yourself"
    return str(json.loads(answer[len(token):]))


if __name__ == "__main__":
    serve()
