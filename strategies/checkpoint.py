"""The state of a run as one file: safetensors, with the rest as JSON in its metadata; no pickle.

What a strategy and its parts return as their state is made of plain values, tensors and arrays, in
dicts, lists, tuples and sets.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from codec.disk import sync_folder
from strategies.errors import CheckpointError

NAME = "checkpoint.safetensors"
_VERSION = 1
_TAG = "kind"  # of a JSON object that stands for something that JSON does not have
_DIGEST_BYTES = 16
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Checkpoint:
    """A run after a round.

    Attributes
    ----------
    server_round : int
        Rounds that are over; 0 is the model before training.
    state : dict
        See `ServerStrategy.state`.
    """

    server_round: int
    state: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write the file; a kill at any moment leaves the old one or the new one, whole.

        Raises
        ------
        CheckpointError
            If the state holds what cannot be kept.
        OSError
            If the disk does not take it.
        """
        tensors: dict[str, Tensor] = {}
        state = _packed(self.state, tensors, "")
        metadata = {
            "version": str(_VERSION),
            "round": str(self.server_round),
            "state": json.dumps(state, separators=(",", ":")),
        }
        metadata["digest"] = _digest(metadata, tensors)
        _replace_file(folder / NAME, save(tensors, metadata))


def has_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a checkpoint."""
    return (folder / NAME).is_file()


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the checkpoint in a folder.

    Raises
    ------
    CheckpointError
        If there is none, or it is damaged or of another version; names the file.
    """
    path = folder / NAME
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                tensors[name] = file.get_tensor(name)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"there is no {path}: a run writes one if it is given checkpoint=FOLDER (of the app: "
            "if checkpoint-every is not 0)"
        ) from error
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error)) from error
    version = metadata.get("version")
    if version != str(_VERSION):
        raise CheckpointError(f"{path} has version {version}; legal: {_VERSION}")
    if metadata.pop("digest", None) != _digest(metadata, tensors):
        raise _damaged(path, "its digest is another")
    state = _unpacked(json.loads(metadata["state"]), tensors)
    return Checkpoint(int(metadata["round"]), cast(dict[str, Any], state))


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged ({why}): start the run anew, in another folder")


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for key in ("version", "round", "state"):
        digest.update(metadata.get(key, "").encode() + b"\0")
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0")
        tensor = tensors[name]
        # Copied, since a view as bytes needs strides that tensors of one element may not have.
        values = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.reshape(-1))
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _replace_file(path: Path, data: bytes) -> None:
    """Put a file in the place of another at once, and for good."""
    prefix = f".{path.name}-"
    for leftover in path.parent.glob(f"{prefix}*"):  # of a process that was killed here
        leftover.unlink(missing_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=prefix)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    sync_folder(path.parent)


def _packed(value: object, tensors: dict[str, Tensor], place: str) -> object:
    """Return a value as JSON; its tensors go into `tensors`, by their places."""
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in _PLAIN:
        return value
    while place in tensors:
        place += "'"
    if isinstance(value, Tensor):
        tensors[place] = value.detach().cpu().clone().contiguous()
        return {_TAG: "tensor", "name": place}
    if isinstance(value, np.ndarray):
        tensors[place] = torch.from_numpy(np.ascontiguousarray(value).copy())
        return {_TAG: "array", "name": place, "shape": value.shape}
    if isinstance(value, bytes):
        return {_TAG: "bytes", "hex": value.hex()}
    if isinstance(value, Mapping):
        items = [[key, _packed(part, tensors, f"{place}.{key}")] for key, part in value.items()]
        if all(type(key) is str for key, _ in items) and _TAG not in value:
            return dict(items)
        keys = [_packed(key, tensors, f"{place}.{number}") for number, key in enumerate(value)]
        pairs = [[key, part] for key, (_, part) in zip(keys, items, strict=True)]
        return {_TAG: "mapping", "items": pairs}
    if isinstance(value, list | tuple | set | frozenset):
        inner = sorted(value) if isinstance(value, set | frozenset) else value
        parts = [_packed(part, tensors, f"{place}.{k}") for k, part in enumerate(inner)]
        if isinstance(value, list):
            return parts
        return {_TAG: "tuple" if isinstance(value, tuple) else "set", "items": parts}
    raise CheckpointError(
        f"a checkpoint cannot keep {place.lstrip('.')}, a {type(value).__name__}: it keeps "
        "numbers, text, tensors, and collections of these"
    )


def _unpacked(value: object, tensors: Mapping[str, Tensor]) -> object:
    if isinstance(value, list):
        return [_unpacked(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_TAG)
    if kind is None:
        return {key: _unpacked(part, tensors) for key, part in value.items()}
    if kind == "tensor":
        return tensors[value["name"]]
    if kind == "array":
        return tensors[value["name"]].numpy().reshape(value["shape"])
    if kind == "bytes":
        return bytes.fromhex(value["hex"])
    if kind == "mapping":
        return {
            cast(Any, _unpacked(key, tensors)): _unpacked(part, tensors)
            for key, part in value["items"]
        }
    parts = [_unpacked(part, tensors) for part in value["items"]]
    return tuple(parts) if kind == "tuple" else set(parts)
