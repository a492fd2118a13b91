"""Kinds of senses and actions from files of a user's own: a checkpoint carries these files, as it carries ours.

`trust_remote_code` runs what `from .x import y` reaches from a checkpoint's own code, all of it in one flat folder.
So a file that registers a kind is written beside our files, its imports of ours made relative, and the file that
Transformers reads first is made to import it. Configuration and codec go with the model, the reader goes with the
processor; what else stands in the file (its feature, on the side of the data) needs pan_hf and is left out.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import sys
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_imports

from pan_hf.modeling import configuration_pan
from pan_hf.tokenization import processing_pan


def copy_senses(folder: str | Path, classes: Iterable[type]) -> None:
    """Writes the files of configurations and codecs that are not ours into a saved model's folder; see `_copy`."""
    _copy(Path(folder), classes, "modeling", Path(configuration_pan.__file__).name)


def copy_readers(folder: str | Path, classes: Iterable[type]) -> None:
    """The same for the readers of a saved processor."""
    _copy(Path(folder), classes, "tokenization", Path(processing_pan.__file__).name)


def travel_with_checkpoints() -> None:
    """Lets models and processors that are saved from now on carry the files of kinds that are not ours."""
    configuration_pan.ON_SAVE.append(copy_senses)
    processing_pan.ON_SAVE.append(copy_readers)


def _copy(folder: Path, classes: Iterable[type], package: str, entry: str) -> None:
    """Writes the files of `classes` as far as they travel with `package`, and lets the file `entry` import them.

    Raises:
        ValueError: a class has no file, or its file needs something that cannot travel.
    """
    by_file: dict[str, list[str]] = {}
    for kind in classes:
        if not kind.__module__.startswith(f"pan_hf.{package}."):
            by_file.setdefault(_file_of(kind), []).append(kind.__name__)
    lines = []
    for file, names in by_file.items():
        text = travelling(file, package, names)
        module = f"{Path(file).stem}_{hashlib.sha256(text.encode()).hexdigest()[:8]}_{package}_pan"
        (folder / f"{module}.py").write_text(text, encoding="utf-8")
        _check_read(folder / f"{module}.py", file)
        lines.append(f"from .{module} import {', '.join(sorted(names))}  # noqa: E402, F401\n")
    if lines:
        with (folder / entry).open("a", encoding="utf-8") as code:
            code.write("\n# the kinds of this checkpoint that pan_hf does not have\n" + "".join(lines))


def _file_of(kind: type) -> str:
    file = None if kind.__module__ == "__main__" else inspect.getsourcefile(kind)
    if file is None:
        raise ValueError(
            f"{kind.__name__} is defined in {kind.__module__}, which no checkpoint can carry; put it into a file of "
            "its own and import it."
        )
    return file


def travelling(file: str, package: str, names: list[str]) -> str:
    """A file as it travels with `package`.

    Args:
        file: path of a module that registers kinds.
        package (`str`): "modeling" or "tokenization"; imports from `pan_hf.<package>.<file>` become relative. What is
            imported from other parts of pan_hf is left out, and so is each statement at the top that needs it.
        names: the classes that must be left.

    Raises:
        ValueError: it imports something that is neither ours nor installed, or a class needs what does not travel.
    """
    source = Path(file).read_text(encoding="utf-8")
    lines: list[str | None] = [*source.splitlines()]
    tree, gone = ast.parse(source, file), dict[str, str]()
    kept = [node for node in tree.body if not _is_left_out(node, package, gone)]
    used = {each.id for node in kept for each in ast.walk(node) if isinstance(each, ast.Name)}
    defined = {name for node in kept for name in _defined(node)}
    for name in names:
        if name not in defined:
            raise ValueError(f"{file}: {name} {gone.get(name, 'is not defined at the top of the file')}.")
    for node in tree.body:
        is_import = isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "__future__"
        if node not in kept or (is_import and not used & set(_defined(node))):
            _replace(lines, node, None)
        elif (relative := _relative(node, package)) is not None:
            _replace(lines, node, relative)
        else:
            _check_imports(node, file)
    return re.sub("\n{4,}", "\n\n\n", "\n".join(line for line in lines if line is not None)) + "\n"


def _replace(lines: list[str | None], node: ast.stmt, text: str | None) -> None:
    """Puts a text in the place of a statement's lines; None removes them, its decorators too."""
    first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))]) - 1
    lines[first : node.end_lineno] = [text] + [None] * (node.end_lineno - first - 1)


def _is_left_out(node: ast.stmt, package: str, gone: dict[str, str]) -> bool:
    """Whether a statement does not travel; what it defines is then noted in `gone`, with the reason."""
    reason = None if _relative(node, package) else _reason(node, gone)
    gone |= dict.fromkeys(_defined(node), reason) if reason is not None else {}
    return reason is not None


def _relative(node: ast.stmt, package: str) -> str | None:
    """An import from a file of `package`, as it is written inside of it; None for any other statement."""
    start = f"pan_hf.{package}."
    if not isinstance(node, ast.ImportFrom) or node.module is None or not node.module.startswith(start):
        return None
    names = [alias.name if alias.asname is None else f"{alias.name} as {alias.asname}" for alias in node.names]
    return f"from .{node.module.removeprefix(start)} import {', '.join(names)}"


def _reason(node: ast.stmt, gone: dict[str, str]) -> str | None:
    """Why a statement does not travel; None if it does."""
    if isinstance(node, ast.ImportFrom) and _is_ours(node.module):
        return f"needs {node.module}, which does not travel with a checkpoint"
    if isinstance(node, ast.Import) and any(_is_ours(alias.name) for alias in node.names):
        return f"needs {node.names[0].name}, which does not travel; write `from pan_hf.modeling.<file> import <name>`"
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return "is there for types alone"
    used = [each.id for each in ast.walk(node) if isinstance(each, ast.Name) and each.id in gone]
    return gone[used[0]] if used else None


def _is_ours(module: str | None) -> bool:
    return (module or "").split(".")[0] == "pan_hf"


def _defined(node: ast.stmt) -> list[str]:
    """Names that a statement at the top gives a meaning to."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).split(".")[0] for alias in node.names]
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    return [each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)]


def _check_imports(node: ast.stmt, file: str) -> None:
    """Raises ValueError where something that stays imports what will not be there."""
    for each in ast.walk(node):
        if isinstance(each, ast.ImportFrom) and each.level:
            modules = ["." * each.level + (each.module or "")]
        elif isinstance(each, ast.Import | ast.ImportFrom):
            modules = [each.module or ""] if isinstance(each, ast.ImportFrom) else [alias.name for alias in each.names]
        else:
            continue
        for module in modules:
            first = module.split(".")[0]
            if not first or _is_ours(first) or first not in sys.stdlib_module_names | packages_distributions().keys():
                raise ValueError(
                    f"{file}, line {each.lineno}: {module} does not travel with a checkpoint. A file that registers a "
                    "kind imports installed packages, and at its top `from pan_hf.modeling.<file> import <name>` and "
                    "`from pan_hf.tokenization.<file> import <name>`; put anything else into the file itself."
                )


def _check_read(path: Path, file: str) -> None:
    """Raises ValueError where Transformers finds relative imports that are none: it reads a file line by line."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    meant = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level}
    if others := sorted(set(get_relative_imports(path)) - meant):
        raise ValueError(f"{file}: a text in it reads like an import from {others}; reword it.")
