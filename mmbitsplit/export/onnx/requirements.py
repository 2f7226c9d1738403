"""Says which extra to install where a package of ONNX or a runtime is missing."""

import importlib
from types import ModuleType


def need(name: str) -> ModuleType:
    """Imports a package of the extra ``onnx``.

    Raises:
        ValueError: It is not installed; says how to get it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f'ONNX needs the package {name} ({error}); install the extra: '
                         "pip install 'mmbitsplit[onnx]'.") from error
