"""Folders that are functions too: `xqg_vdb.generate(...)` generates, and `xqg_vdb.generate.run` is in the folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


class CallableFolder(ModuleType):
    """A package whose call is that of the function of its name, in the module `home`, imported when it is called."""

    home: str

    @property
    def __call__(self) -> Callable[..., Any]:  # a property, so that no signature is repeated here
        """The function."""
        function: Callable[..., Any] = getattr(import_module(self.home), self.__name__.rpartition(".")[2])
        return function


def make_callable(package: str, *, home: str) -> None:
    """Let a package, by its name, be called as the function of the same name that the module `home` has."""
    module = sys.modules[package]
    module.__class__ = CallableFolder
    module.home = home  # type: ignore[attr-defined]
