"""A Python function found by its dotted path or in a file, and the keywords of those offered that it takes."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ltune.errors import UsageError


def loaded(path: str) -> Callable[..., Any]:
    """The function; modules are looked for in the current folder too.

    Args:
        path: "package.module.function", or "path/to/file.py:function".

    Raises:
        UsageError: There is no such module, file or function, or importing it failed.
    """
    place, _, name = path.rpartition(":") if ".py:" in path else path.rpartition(".")
    if not place or not name.isidentifier():
        raise UsageError(f'function: give "package.module.function" or "path/to/file.py:function", got {path!r}')
    try:
        module = _file(Path(place)) if place.endswith(".py") else _module(place)
    except UsageError:
        raise
    except Exception as error:  # whatever the user's module does
        raise UsageError(f"function {path}: importing {place} failed: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"function {path}: there is no function {name} in {place}")
    return function


def _module(name: str) -> ModuleType:
    before = list(sys.path)
    sys.path.insert(0, "")  # the current folder, which an installed command does not have there
    try:
        return importlib.import_module(name)
    finally:
        sys.path[:] = before


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"function: there is no file {path}")
    specification = importlib.util.spec_from_file_location(f"ltune_reward_{path.stem}", path)
    assert specification is not None, path
    assert specification.loader is not None, path
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def taken(function: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """Those of the keywords offered that the function names; all, if it takes ``**others``.

    Raises:
        UsageError: It needs one that is not offered.
    """
    parameters = inspect.signature(function).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        named = offered
    else:
        named = {name: value for name, value in offered.items() if name in parameters}
    needed = [
        name for name, one in parameters.items() if one.default is one.empty and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]
    if missing := [name for name in needed if name not in named]:
        raise UsageError(f"it asks for {', '.join(missing)}; there are {', '.join(offered)}")
    return named
