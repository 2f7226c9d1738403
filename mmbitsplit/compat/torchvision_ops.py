"""Lets ``import torchvision`` work where its compiled part does not load.

The registry's torchvision is built for CUDA torch. Beside a CPU torch its ``_C`` library
(``_C_stable`` from torchvision 0.29 on) cannot be loaded; torchvision goes on without it and then
stops at "operator torchvision::nms does not exist", because it attaches shape functions to
operators that only ``_C`` would have declared. The schema alone is enough for that, so the schemas
are declared here, and only when ``_C`` is missing.
Calling such an operator still fails, with torchvision's own message about the missing C++ part.

Stdlib only at the top, and nothing from this package: the set-up copies this file into a virtual
environment's site-packages, where it runs at every interpreter start and must cost nothing.
"""

import importlib.machinery
import importlib.util
import sys

TORCHVISION_OPERATORS = {
    'nms': 'nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
    'qnms': 'qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
}

COMPILED_PARTS = ('_C', '_C_stable')

_libraries = []  # torch forgets a schema as soon as the Library object that declared it is freed


def declare_missing_torchvision_ops():
    """Declare the operator schemas without which torchvision cannot be imported.

    Does nothing where torch or torchvision is not installed, or where the compiled part loads.

    Returns:
        tuple[str, ...]: Names of the operators declared by this call, empty when none was missing.
    """
    package_dirs = _torchvision_dirs()
    if not package_dirs or importlib.util.find_spec('torch') is None:
        return ()
    import torch
    import torch.library
    if _compiled_part_loads(torch, package_dirs):
        return ()
    missing = {
        name: schema
        for name, schema in TORCHVISION_OPERATORS.items()
        if not hasattr(torch.ops.torchvision, name)
    }
    if missing:
        # FRAGMENT, not DEF: another library may own the namespace `torchvision` or come to own it.
        library = torch.library.Library('torchvision', 'FRAGMENT')
        for schema in missing.values():
            library.define(schema)
        _libraries.append(library)
    return tuple(missing)


def install_import_hook():
    """Declare the missing operators right before whoever comes first imports torchvision.

    Costs an interpreter start nothing: torch is imported only together with torchvision.
    """
    if not any(getattr(finder, 'declares_torchvision_ops', False) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchvisionFinder())


class _TorchvisionFinder:
    """Finds torchvision as the other finders do, with a loader that declares the operators first.

    A look-up alone (``importlib.util.find_spec``) thus imports nothing.
    """

    declares_torchvision_ops = True

    def __init__(self):
        self._searching = False

    def find_spec(self, name, path=None, target=None):
        if name != 'torchvision' or self._searching:
            return None
        self._searching = True  # the search below asks this finder again
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _DeclareFirst(spec.loader)
        return spec


class _DeclareFirst:
    """A module loader that declares the operators, then leaves the work to the real loader."""

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        # Resource readers and `inspect` look at these two; they shall see the real loader.
        module.__spec__.loader = module.__loader__ = self._loader
        declare_missing_torchvision_ops()
        self._loader.exec_module(module)


def _torchvision_dirs():
    """Folders of the torchvision package, also while it is being imported; empty without it."""
    module = sys.modules.get('torchvision')
    spec = module.__spec__ if module is not None else importlib.util.find_spec('torchvision')
    return list(spec.submodule_search_locations or ()) if spec is not None else []


def _compiled_part_loads(torch, package_dirs):
    """Whether torchvision's compiled part loads, found out by loading it as torchvision does."""
    details = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    finders = [importlib.machinery.FileFinder(folder, details) for folder in package_dirs]
    for spec in [finder.find_spec(name) for finder in finders for name in COMPILED_PARTS]:
        if spec is None:
            continue
        try:
            torch.ops.load_library(spec.origin)
        except (ImportError, OSError):
            continue
        return True
    return False
