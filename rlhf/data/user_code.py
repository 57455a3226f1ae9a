"""A user's own code by name: `package.module:name`, or `path/to/file.py:name`."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class UserCodeError(RuntimeError):
    """There is nothing callable under that name; the message says what to give."""


def load_callable(path: str, what: str) -> Callable[..., Any]:
    """What `path` names; `what` it is to be, for messages.

    Modules are looked for in the working directory too. Raises UserCodeError with the remedy if there is none.
    """
    location, _, name = path.rpartition(":")
    if location.endswith(".py"):
        file = Path(location)
        spec = importlib.util.spec_from_file_location(file.stem, file) if file.is_file() else None
        if spec is None or spec.loader is None:
            raise UserCodeError(f"{what} {path!r}: there is no file {file.absolute()}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = _import(location, path, what)
    function = getattr(module, name, None)
    if not callable(function):
        raise UserCodeError(f"{what} {path!r}: {location} has no function {name!r}")
    return function


def _import(name: str, path: str, what: str) -> Any:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise  # the user's module exists, and imports one that does not
        raise UserCodeError(
            f"{what} {path!r}: there is no module {name!r} on the import path or in {Path.cwd()}; "
            "install it, or give a file: path/to/file.py:function"
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))
