"""A Flower app of a few lines, in a folder, for tests."""

from pathlib import Path

PROJECT = """
[project]
name = "tiny"
version = "0.1.0"
description = "An app for tests"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "nobody"

[tool.flwr.app.components]
serverapp = "tiny.server_app:app"
clientapp = "tiny.client_app:app"

[tool.flwr.app.config]
mode = "succeed"
rate = 0.5
out-dir = ""
"""


def write_app(folder: Path, *, client: str, server: str = "") -> Path:
    """Write the app's files and return its folder."""
    package = folder / "app" / "tiny"
    package.mkdir(parents=True)
    (folder / "app" / "pyproject.toml").write_text(PROJECT)
    (package / "__init__.py").touch()
    (package / "server_app.py").write_text(server)
    (package / "client_app.py").write_text(client)
    return folder / "app"
