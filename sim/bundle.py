"""The files of an app that travel with a run, without a walk through all that lies beside them."""

import shutil
import tomllib
from pathlib import Path

_ALWAYS = ("pyproject.toml", "LICENSE", ".gitignore")
_WILD = frozenset("*?[!")


def staged(app: Path, folder: Path) -> Path:
    """Return a folder with what an app's bundle is made of.

    Flower looks at every file below the app's folder, of which a virtual environment alone may
    have 50,000, and then keeps those that ``fab-include`` names.

    Parameters
    ----------
    app : Path
        Folder of the app.
    folder : Path
        Where files are copied to, if the app tells which folders they are in.

    Returns
    -------
    Path
        A new folder of the app's name in `folder`; `app` itself if it does not tell.
    """
    tops = _tops(app)
    if not tops:
        return app
    copy = folder / app.resolve().name
    copy.mkdir()
    for name in {*tops, *_ALWAYS}:
        place = app / name
        if place.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(place, copy / name, symlinks=True, ignore=ignored)
        elif place.is_file() and not place.is_symlink():
            shutil.copy2(place, copy / name)
    return copy


def _tops(app: Path) -> set[str]:
    """Return files and folders right below an app's that its bundle is of; none: all of them."""
    project = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
    declared = project.get("tool", {}).get("flwr", {}).get("app", {}).get("fab-include", [])
    tops = {str(pattern).lstrip("/").partition("/")[0] for pattern in declared}
    return set() if any(_WILD & set(top) for top in tops) else tops - {"", "."}
