"""Run config from the command line, typed as the app's own defaults are."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

ConfigValue: TypeAlias = bool | int | float | str

# Keys that hold a path, and the folder that an empty data-dir stands for.
_DATA_DIR = "data-dir"
_SIZE = re.compile(r"\d+(\.\d+)? ?[kKMG]?B")
_PATHS = (_DATA_DIR, "out-dir", "bank", "state-dir")
_DEFAULT_DATA_DIR = "data"


class RunConfigError(ValueError):
    """An entry that does not fit the app; names key, value and what is legal."""


def read_defaults(app: Path) -> dict[str, ConfigValue]:
    """Return the run config that an app declares in its ``pyproject.toml``, flattened."""
    if not (app / "pyproject.toml").is_file():
        raise RunConfigError(
            f"cannot read {app / 'pyproject.toml'}: --app must be the folder of a Flower app"
        )
    project = _read_toml(app / "pyproject.toml")
    try:
        return _flatten(project["tool"]["flwr"]["app"]["config"])
    except KeyError:
        return {}


def make_run_config(
    app: Path, pairs: Iterable[str] = (), file: Path | None = None
) -> dict[str, ConfigValue]:
    """Return what a run overrides of the app's run config.

    Parameters
    ----------
    app : Path
        Folder of the Flower app.
    pairs : iterable of str
        ``"KEY=VALUE"``, the value in the type of the key's default; they go before `file`.
    file : Path, optional
        TOML file of keys and values.

    Returns
    -------
    dict
        Flat keys; paths are absolute, an empty ``data-dir`` is ``data`` in the working directory.

    Raises
    ------
    RunConfigError
        On an unknown key, a value of the wrong type, or an unreadable file.
    """
    defaults = read_defaults(app)
    values = _flatten(_read_toml(file)) if file else {}
    for key, text in _split(pairs).items():
        values[key] = _parse(key, text, defaults[key]) if key in defaults else text
    for key in values:
        if key not in defaults:
            raise RunConfigError(f"the run config has no key {key!r}; {_hint(key, defaults)}")
    if _DATA_DIR in defaults:
        values[_DATA_DIR] = values.get(_DATA_DIR) or defaults[_DATA_DIR] or _DEFAULT_DATA_DIR
    return {key: _absolute(key, value) for key, value in values.items()}


def _split(pairs: Iterable[str]) -> dict[str, str]:
    """Return keys and values of pairs, none of them twice with different values."""
    texts: dict[str, str] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise RunConfigError(f"{pair!r} must have the form KEY=VALUE, as seed=1")
        if texts.setdefault(key, text) != text:
            raise RunConfigError(
                f"--config has both {key}={texts[key]} and {key}={text}; leave one of them out"
            )
    return texts


def _hint(key: str, known: Mapping[str, ConfigValue]) -> str:
    """Return what the user of an unknown key may have meant."""
    from codec.options import did_you_mean  # imports NumPy

    table, _, name = key.rpartition(".")
    if table and name in known:
        return f"keys are not nested: take {name!r} out of the table {table!r}"
    return did_you_mean(key, known, "known keys")


def _parse(key: str, text: str, default: ConfigValue) -> ConfigValue:
    """Return `text` in the type of `default`."""
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise RunConfigError(f"{key} = {text!r} must be true or false")
        return text == "true"
    try:
        return type(default)(text)
    except ValueError:
        if isinstance(default, int) and _SIZE.fullmatch(text):
            return text  # bytes, if the app takes them
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise RunConfigError(f"{key} = {text!r} must be {kind}") from None


def _absolute(key: str, value: ConfigValue) -> ConfigValue:
    if key in _PATHS and value:
        return str(Path(str(value)).expanduser().absolute())
    return value


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunConfigError(
            f"cannot read {file}: {error.strerror}; it must be a TOML file with lines KEY = VALUE"
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RunConfigError(
            f"cannot read {file}: {error}; it must be TOML: lines KEY = VALUE, strings in quotes"
        ) from error


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, ConfigValue]:
    """Join nested keys with dots, as Flower does."""
    flat: dict[str, ConfigValue] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
