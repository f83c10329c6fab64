"""Packages that only some worlds need: `requirements-extras.txt`."""

import importlib
from types import ModuleType

INSTALL = "pip install -r requirements.txt -r requirements-extras.txt"


def need(module: str) -> ModuleType:
    """Returns an optional package's module.

    Raises:
        ModuleNotFoundError: it is not installed; names the package and the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if (error.name or "").split(".")[0] != package:
            raise
        raise ModuleNotFoundError(f"{package} is not installed: {INSTALL}", name=package) from None
