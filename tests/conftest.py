"""Shared by all tests."""

import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import settings

from codec.compilation import is_compiled

# Threads of torch that wait for a busy core by spinning cost many times the work itself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# How fast a machine is at the moment is not what properties are about.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_sessionstart() -> None:
    """Compile the kernels first: traced by hypothesis, it takes ten times as long."""
    if is_compiled():
        from codec.samples.block_dct.compiled import prepare

        prepare()


@pytest.fixture(autouse=True)
def task_identity() -> None:
    """Let tests build request messages, which Flower's runtime allows only to a task."""
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = 1
    TaskIdentity.node_id = 1


@pytest.fixture(scope="session")
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for what clients of tests remember."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(autouse=True)
def own_state(state_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test remember what another one sent, nor on this machine's disk."""
    monkeypatch.setenv("XDG_STATE_HOME", str(state_home / uuid.uuid4().hex))


@pytest.fixture(autouse=True)
def no_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare runs the page at their end: it takes seconds, and has tests of its own."""
    app = sys.modules.get("fl_app.server_app")
    if app is not None and request.module.__name__ != "test_report":
        monkeypatch.setattr(app, "try_report", lambda folder: None)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread: for models this small, waiting for a busy core costs far more."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
