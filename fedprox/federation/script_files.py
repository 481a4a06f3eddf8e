"""The files of a training script: the libraries that it imports, and the modules beside it."""

import ast
from collections.abc import Iterable
from pathlib import Path

from fedprox.errors import UserError


def libraries(script: Path) -> list[str]:
    """Return the modules that a script imports at its top level, without those that lie beside it.

    Raises:
        UserError: If the script is missing or not a Python program.
    """
    try:
        tree = ast.parse(script.read_bytes())
    except OSError as error:
        raise UserError(f"client.script={script}: {error.strerror}; name a Python program") from None
    except (SyntaxError, ValueError) as error:  # ValueError for null bytes
        raise UserError(f"client.script={script} is not a Python program: {error}") from None
    beside = {entry.stem for entry in script.parent.iterdir()}
    return [name for name in _imported(tree.body) if name.partition(".")[0] not in beside]


def files(script: Path) -> list[Path]:
    """Return a script and the modules beside it that it imports, itself or by others, with all files of packages.

    Raises:
        UserError: If the script is missing or not a Python program.
    """
    libraries(script)
    found, waiting = {script: None}, [script]
    while waiting:
        try:
            tree = ast.parse(waiting.pop().read_bytes())
        except (SyntaxError, ValueError):  # the script may never import it
            continue
        for name in dict.fromkeys(each.partition(".")[0] for each in _imported(ast.walk(tree))):
            module, package = script.with_name(f"{name}.py"), script.with_name(name)
            new = [file for file in (module, *sorted(package.rglob("*.py"))) if file.is_file() and file not in found]
            found |= dict.fromkeys(new)
            waiting += new
    return list(found)


def _imported(nodes: Iterable[ast.AST]) -> list[str]:
    """Return the modules that some statements import, without relative imports."""
    names: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
    return list(dict.fromkeys(names))
