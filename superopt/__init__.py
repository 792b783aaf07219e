"""superopt: a PyTorch function in, a searched and checked fused Triton kernel out.

superopt.spec, superopt.Tensor      mark a function with the shapes it is made for
superopt.search, superopt.Result    find a kernel
superopt.optimize                   the decorator: searches at the first call
superopt.RayExecutor                search on a Ray cluster: search(..., executor=RayExecutor())
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import superopt.search as _search_package
import superopt.spec as _spec_module
from superopt.spec import Tensor

if TYPE_CHECKING:
    from superopt.api import Result, optimize, search
    from superopt.search.ray_cluster import RayExecutor
    from superopt.spec import spec

__all__ = ["RayExecutor", "Result", "Tensor", "optimize", "search", "spec"]

# `superopt.spec` and `superopt.search` are modules to Python and functions to users: both hold.
_CALLED = {
    "superopt.spec": ("superopt.spec", "spec"),
    "superopt.search": ("superopt.api", "search"),
}


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, function = _CALLED[self.__name__]
        return getattr(import_module(module), function)(*args, **kwargs)


for _module in (_spec_module, _search_package):
    sys.modules[_module.__name__].__class__ = _CallableModule


def __getattr__(name: str) -> Any:
    """What needs torch is imported when first used: worker processes import this package too."""
    if name in ("Result", "optimize"):
        return getattr(import_module("superopt.api"), name)
    if name == "RayExecutor":
        return import_module("superopt.search.ray_cluster").RayExecutor
    raise AttributeError(f"module 'superopt' has no attribute {name!r}")
