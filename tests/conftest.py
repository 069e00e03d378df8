"""Shared by all tests."""

import os

import pytest
from flwr.supercore.task_identity import TaskIdentity

# Threads of torch that wait for a busy core by spinning cost many times the work itself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(autouse=True)
def task_identity() -> None:
    """Let tests build instruction messages, which Flower's runtime allows only to a task."""
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = 1
    TaskIdentity.node_id = 1
