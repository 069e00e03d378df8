"""A small Flower app of the user's own that uses the strategies: ``python -m sim new DIR``."""

import re
from pathlib import Path

from sim.run_config import RunConfigError

_STARTER = Path(__file__).parent / "starter"
_PROJECT = re.compile(r"[a-z][a-z0-9-]{0,31}")  # as Flower has it
_TAKEN = ("codec", "clients", "strategies", "fl_app", "sim")


def write_app(folder: Path) -> str:
    """Write the app, and return the name of its package: that of the folder.

    Parameters
    ----------
    folder : Path
        Empty, or not there yet.

    Raises
    ------
    RunConfigError
        If there is something in it, or its name cannot be that of an app.
    """
    project = folder.name.lower().replace("_", "-")
    name = project.replace("-", "_")
    if not _PROJECT.fullmatch(project) or name in _TAKEN:
        raise RunConfigError(
            f"{folder.name!r} becomes the app's name: it must have at most 32 letters, digits, - "
            f"and _, begin with a letter, and be none of {', '.join(_TAKEN)}"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunConfigError(f"{folder} must be an empty folder, or a new one")
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""The app."""\n', encoding="utf-8")
    for template in sorted(_STARTER.glob("*.txt")):
        place = package if template.stem.endswith(".py") else folder
        text = template.read_text(encoding="utf-8")
        text = text.replace("{name}", name).replace("{project}", project)
        (place / template.stem).write_text(text, encoding="utf-8")
    return name
