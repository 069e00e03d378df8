"""Packages that are installed by role: what is missing is named with the extra that brings it."""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from codec.errors import CodecError


class MissingPackage(CodecError, ImportError):
    """A package that this role needs is not installed; names the extra that brings it."""


@dataclass(frozen=True)
class Origin:
    """Where a module comes from.

    Attributes
    ----------
    distribution : str
        Its name for ``pip install``.
    extra : str
        Extra of this project in ``pyproject.toml``.
    """

    distribution: str
    extra: str


# By the name under which a module is imported.
ORIGINS: Mapping[str, Origin] = {
    "flwr": Origin("flwr", "edge"),
    "constriction": Origin("constriction", "edge"),
    "PIL": Origin("pillow", "edge"),
    "torch": Origin("torch", "strategies"),
    "safetensors": Origin("safetensors", "strategies"),
    "torchvision": Origin("torchvision", "app"),
    "matplotlib": Origin("matplotlib", "app"),
    "jinja2": Origin("jinja2", "app"),
    "ray": Origin("flwr[simulation]", "sim"),
    "mlxtend": Origin("mlxtend", "sim"),
    "cryptography": Origin("cryptography", "sim"),
    "tomli_w": Origin("tomli-w", "sim"),
    "tensorboard": Origin("tensorboard", "tensorboard"),
    "imagecodecs": Origin("imagecodecs", "bench"),
}


def require(*modules: str) -> None:
    """Raise `MissingPackage` for the first module of `ORIGINS` that is not installed."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingPackage(_remedy(module))


@contextmanager
def needed_packages() -> Iterator[None]:
    """Turn the error of an import that fails into `MissingPackage`, if the package is known."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in ORIGINS:
            raise
        raise MissingPackage(_remedy(module)) from error


def _remedy(module: str) -> str:
    origin = ORIGINS[module]
    return (
        f"the package {module} is not installed: pip install '{origin.distribution}', or, in the "
        f"folder of flwr-quantized-data, all that its role needs: pip install '.[{origin.extra}]'"
    )
