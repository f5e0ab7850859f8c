"""The answers in a hand-in, and what they call: taken out of its notebook without running it.

    tree = linked(sources, {"iou"})         # the last definition of iou and of every name that it needs, as a module
    check_allowed(tree, imported)           # UserError for what no exercise needs: files, processes, patched modules

So nothing else in the notebook can change what a check finds.  That is no proof against malice: see TEACHING.md.
"""
import ast
import re
import symtable

from IPython.core.inputtransformer2 import TransformerManager

from ..errors import UserError

# Top-level packages an answer may import; submodules included.
MODULES = {"torch", "torchvision", "numpy", "scnet_minimal", "matplotlib", "PIL", "math", "cmath", "itertools",
           "typing", "functools", "collections", "statistics", "operator", "random", "copy", "dataclasses", "fractions",
           "time", "heapq", "bisect", "string", "re", "enum", "abc", "numbers", "contextlib", "warnings", "__future__"}
NAMES = {"exec", "eval", "compile", "open", "globals", "locals", "vars", "input", "breakpoint", "get_ipython", "exit",
         "quit", "memoryview"}
# Reached through a package, as in torch.os; and the ways from a function or an error to the variables of its caller.
ATTRIBUTES = {"os", "sys", "io", "builtins", "importlib", "subprocess", "ctypes", "inspect", "gc", "pickle", "shutil",
              "socket", "multiprocessing", "threading", "signal", "tempfile", "pathlib", "Path", "system", "settrace",
              "f_globals", "f_locals", "f_back", "f_builtins", "gi_frame", "cr_frame", "ag_frame", "tb_frame"}
USUAL = {"__init__", "__call__", "__len__", "__getitem__", "__iter__", "__next__", "__repr__", "__str__", "__name__",
         "__class__", "__enter__", "__exit__", "__post_init__", "__setitem__", "__contains__"}


def top_level_names(node: ast.stmt) -> list[str]:
    """The names that a statement at the top of a cell defines."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Import() | ast.ImportFrom():
            return [alias.asname or alias.name.split(".")[0] for alias in node.names]
        case ast.Assign() | ast.AnnAssign():
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            return [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    return []


def answer_names(source: str) -> set[str]:
    """The functions and classes that a teacher's answer cell defines: what a student's has to define."""
    return {node.name for node in ast.parse(source).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def needed_names(node: ast.stmt) -> set[str]:
    """The names that a statement looks up outside of itself; a function's parameters and variables are its own."""
    names, tables = set(), [symtable.symtable(ast.unparse(node), "<cell>", "exec")]
    for table in tables:
        tables += table.get_children()
        names |= {symbol.get_name() for symbol in table.get_symbols()
                  if symbol.is_referenced() and (table.get_type() == "module" or symbol.is_global())}
    return names


def linked(sources: list[str], wanted: set[str]) -> ast.Module:
    """The definitions of these names in the cells of a notebook, the last of each, and of all that they use, as it was
    defined when the notebook came to that cell.

    UserError if one is not there, or its cell is no Python.
    """
    defined: dict[str, list[tuple[int, int, ast.stmt]]] = {}            # name: cell, place in it, statement
    broken = []
    for i, source in enumerate(sources):
        try:
            tree = ast.parse(TransformerManager().transform_cell(source))       # IPython's %magics and !commands
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            broken.append((source, f"{type(error).__name__}: {str(error)[:200]}"))
            continue
        for j, node in enumerate(tree.body):
            for name in top_level_names(node):
                defined.setdefault(name, []).append((i, j, node))
    for name in sorted(wanted - defined.keys()):
        why = next((f": {error}" for source, error in broken if re.search(rf"(def|class)\s+{name}\b", source)), "")
        raise UserError(f"{name!r} is not defined{why}")
    here = max(defined[name][-1][0] for name in wanted)
    todo, needed = list(wanted), {}
    while todo:
        found = defined.get(name := todo.pop(), [])
        before = [one for one in found if one[0] <= here]
        if found and (one := (found if name in wanted or not before else before)[-1])[:2] not in needed:
            needed[one[:2]] = one[2]
            todo += needed_names(one[2])
    return ast.Module([needed[place] for place in sorted(needed)], [])


def check_allowed(tree: ast.Module, imported: set[str]) -> None:
    """UserError for what no exercise needs and cheating does.

    imported  the names of the notebook's imports: what hangs on them may be used and not replaced
    """
    imported = imported | {name for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))
                           for name in top_level_names(node)}
    for node in ast.walk(tree):
        if why := _not_allowed(node, imported):
            raise UserError(f"line {getattr(node, 'lineno', '?')} {why}: an answer may not, look at it yourself")


def _not_allowed(node: ast.AST, imported: set[str]) -> str:
    match node:
        case ast.Import(names=names) if odd := [a.name for a in names if a.name.split(".")[0] not in MODULES]:
            return f"imports {odd[0]}"
        case ast.ImportFrom(module=module, names=names) if (
                node.level or module.split(".")[0] not in MODULES or {a.name for a in names} & ATTRIBUTES):
            return f"imports from {module}"
        case ast.Import(names=names) | ast.ImportFrom(names=names) if odd := [
                part for a in names for part in a.name.split(".") if part in ATTRIBUTES or _hidden(part)]:
            return f"imports {odd[0]}"
        case ast.Name(id=name) if name in NAMES or _hidden(name):
            return f"uses {name}"
        case ast.Attribute(attr=name) if name in ATTRIBUTES or _hidden(name):
            return f"uses .{name}"
        case ast.Constant(value=str(text)) if re.search(r"__\w+__", text) and text not in USUAL and "\n" not in text:
            return f"holds the name {text[:40]}"
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name) if _hidden(name):
            return f"defines {name}"
        case ast.Call(func=ast.Name(id="type"), args=[_, _, *_]):
            return "makes a class by type()"
        case ast.Attribute(ctx=ast.Store() | ast.Del()) | ast.Subscript(ctx=ast.Store() | ast.Del()):
            root = node
            while isinstance(root, (ast.Attribute, ast.Subscript)):
                root = root.value
            if isinstance(root, ast.Name) and root.id in imported:
                return f"changes {ast.unparse(node)[:40]}"
    return ""


def _hidden(name: str) -> bool:
    return name.startswith("__") and name.endswith("__") and name not in USUAL
