"""Packages whose parts are imported without the package itself, where its `__init__` would import everything.

`enter(name)` puts a package into `sys.modules` without running its `__init__`. Imports of its submodules then load
those and what they import themselves. Whoever uses the package as usual later in the same process (`from pyroute2
import IPRoute`) finds what it has: a submodule that is asked for as an attribute is imported, and any other name that
is missing makes the `__init__` run after all.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

_DEFINED = frozenset({"__all__", "__version__"})
"""Names of the kind `__name__` that an `__init__` may define; Python itself asks for others."""


class _Unexecuted(ModuleType):
    """A package whose `__init__` has not run."""

    def __getattr__(self, name: str) -> Any:
        """Provide what the package does not have yet. Raises AttributeError, and what an import raises."""
        spec = self.__spec__
        if spec is None or spec.loader is None or (name.startswith("__") and name not in _DEFINED):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        part = f"{self.__name__}.{name}"
        if importlib.util.find_spec(part) is not None:
            return importlib.import_module(part)
        self.__class__ = ModuleType  # type: ignore[assignment]  # what it is from now on
        spec.loader.exec_module(self)
        return getattr(self, name)


def enter(name: str) -> None:
    """Enter a package without running its `__init__`. Nothing happens when it is loaded already, or not installed."""
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        return  # the import of a part says what is missing
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _Unexecuted
    sys.modules[name] = module
    outer, _, last = name.rpartition(".")
    if outer:
        setattr(sys.modules[outer], last, module)
