"""Apps of other people's kind: as they are under ``flwr run``, and with our strategy plugged in.

``hosts/<name>`` is an app that knows nothing of us and ``hosts/<name>.patch`` all that its owner
changes. README.md's own diff is applied to ``hosts/readme``.
"""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict
from inprocess_grid import InProcessGrid

from sim.launcher import launch

ROOT = Path(__file__).parents[1]
HOSTS = ROOT / "tests" / "hosts"
NAMES = ("quickstart", "advanced", "tabular")

CLIENTS = 3
MOST_ADDED_LINES = 10
HALF_A_POINT = 0.005


def read_metrics(out: Path) -> dict[str, list[dict[str, float]]]:
    """Return what an app reported, by where it was evaluated."""
    if (out / "metrics.json").exists():
        metrics: dict[str, list[dict[str, float]]] = json.loads((out / "metrics.json").read_text())
        return metrics
    lines = read_log(out)
    return {place: [line[place] for line in lines] for place in ("clientapp", "serverapp")}


def read_log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def accuracy_of(metrics: dict[str, float]) -> float:
    return metrics["eval_acc"] if "eval_acc" in metrics else metrics["accuracy"]


@dataclass(frozen=True)
class HeldOut:
    """What an app evaluates with: its own model, data and function."""

    net: type[torch.nn.Module]
    evaluate: Any  # (model, loader) -> (loss, accuracy)
    of_clients: list[Any]  # a loader for each
    of_server: Any  # a loader, or None

    def accuracies(self, file: Path) -> tuple[list[float], float | None]:
        """Return a saved model's accuracy with each client's data, and with the server's."""
        net = self.net()
        net.load_state_dict(torch.load(file))
        of_clients = [self.evaluate(net, loader)[1] for loader in self.of_clients]
        return of_clients, self.of_server and self.evaluate(net, self.of_server)[1]

    def mean(self, accuracies: list[float], who: tuple[int, ...] = tuple(range(CLIENTS))) -> float:
        """Return the mean over clients, weighted by their examples, as strategies do."""
        sizes = {client: len(self.of_clients[client].dataset) for client in who}
        return sum(sizes[k] * accuracies[k] for k in who) / sum(sizes.values())

    def pooled(self, file: Path) -> float:
        """Return the accuracy over all held-out data."""
        of_clients, of_server = self.accuracies(file)
        sizes = [len(loader.dataset) for loader in self.of_clients]
        right = sum(size * share for size, share in zip(sizes, of_clients, strict=True))
        if of_server is not None:
            right += len(self.of_server.dataset) * of_server
            sizes.append(len(self.of_server.dataset))
        return right / sum(sizes)


def held_out(host: str) -> HeldOut:
    if host == "tabular":
        task = importlib.import_module("loans.task")
        loaders = [task.load_data(client, CLIENTS)[1] for client in range(CLIENTS)]
        return HeldOut(task.LoanClassifier, task.evaluate, loaders, None)
    task = importlib.import_module("imageapp.task" if host == "quickstart" else "bestmodel.task")
    loaders = [task.load_data(client, CLIENTS, 32)[1] for client in range(CLIENTS)]
    of_server = task.load_centralized_dataset if host == "quickstart" else task.load_test_data

    def evaluate(net: torch.nn.Module, loader: Any) -> tuple[float, float]:
        loss, accuracy = task.test(net, loader, "cpu")
        return float(loss), float(accuracy)

    return HeldOut(task.Net, evaluate, loaders, of_server())


def copy_of(host: str, folder: Path) -> Path:
    return Path(shutil.copytree(HOSTS / host, folder, ignore=shutil.ignore_patterns("__pycache__")))


def apply_patch(host: str, app: Path) -> None:
    command = ["git", "apply", str(HOSTS / f"{host}.patch")]
    # Not as part of a repository that the folder may stand in, or that a hook speaks of.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment["GIT_CEILING_DIRECTORIES"] = str(app.parent)
    done = subprocess.run(command, cwd=app, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run(app: Path) -> Path:
    """Run an app under a SuperLink of its own; return the folder of what it saved."""
    out = app.parent / f"{app.name}-results"
    out.mkdir()
    with pytest.MonkeyPatch.context() as patch, (out / "log.txt").open("w") as log:
        patch.setenv("PYTHONPATH", str(ROOT))  # as if this checkout were installed
        patch.setenv("OMP_NUM_THREADS", "1")  # models this small gain nothing from more
        launch(app, {"out-dir": str(out)}, CLIENTS, echo=lambda line: print(line, file=log))
    return out


@pytest.fixture(scope="module", params=NAMES)
def host(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def host_data(host: str) -> HeldOut:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HOSTS / host))
        return held_out(host)


@pytest.fixture(scope="module")
def plain(host: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of an app as it is, with Flower's federated averaging."""
    return run(copy_of(host, tmp_path_factory.mktemp(host) / "plain"))


@pytest.fixture(scope="module")
def plugged(host: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of an app with our strategy."""
    app = copy_of(host, tmp_path_factory.mktemp(host) / "plugged")
    apply_patch(host, app)
    return run(app)


def test_a_patch_applies_and_adds_few_lines(host: str, tmp_path: Path) -> None:
    app = copy_of(host, tmp_path / host)
    apply_patch(host, app)
    sources = "".join(file.read_text() for file in sorted(app.rglob("*.py")))
    assert "QuantizedDataReplay" in sources
    assert "clients.train(" in sources
    lines = (HOSTS / f"{host}.patch").read_text().splitlines()
    added = [line for line in lines if line.startswith("+") and not line.startswith("+++ ")]
    assert len(added) <= MOST_ADDED_LINES


def check_report(host: str, data: HeldOut, out: Path) -> None:
    """Check that the saved model is as good as the app says it is."""
    of_clients, of_server = data.accuracies(out / "final_model.pt")
    last = {place: accuracy_of(rounds[-1]) for place, rounds in read_metrics(out).items()}
    assert set(last) == {"clientapp"} | ({"serverapp"} if of_server is not None else set())
    if of_server is not None:
        assert last["serverapp"] == pytest.approx(of_server, abs=HALF_A_POINT)
    # The advanced app evaluates on two clients of three, and does not say which.
    asked = combinations(range(CLIENTS), 2 if host == "advanced" else CLIENTS)
    possible = [data.mean(of_clients, who) for who in asked]
    assert min(abs(last["clientapp"] - accuracy) for accuracy in possible) < HALF_A_POINT, possible


@pytest.mark.slow
@pytest.mark.simulation
@pytest.mark.timeout(600)
class TestUnderFlwrRun:
    """A run takes half a minute on two idle cores; it belongs to the first test that needs it."""

    def test_the_app_works_by_itself(self, host: str, host_data: HeldOut, plain: Path) -> None:
        check_report(host, host_data, plain)

    def test_the_saved_model_is_as_good_as_reported(
        self, host: str, host_data: HeldOut, plugged: Path
    ) -> None:
        check_report(host, host_data, plugged)

    def test_it_learns_no_less_than_with_federated_averaging(
        self, host_data: HeldOut, plain: Path, plugged: Path
    ) -> None:
        """Without a tolerance: the apps stop while federated averaging is some points behind."""
        accuracies = {out: host_data.pooled(out / "final_model.pt") for out in (plain, plugged)}
        assert accuracies[plugged] >= accuracies[plain]

    def test_each_round_is_evaluated_as_before(self, plain: Path, plugged: Path) -> None:
        before, after = read_metrics(plain), read_metrics(plugged)
        assert set(after) == set(before)
        for place, rounds in before.items():
            assert [set(metrics) for metrics in after[place]] == [
                set(metrics) for metrics in rounds
            ]

    @pytest.mark.parametrize("host", ["advanced"], indirect=True)
    def test_a_subclass_keeps_its_ways(
        self, host_data: HeldOut, plain: Path, plugged: Path
    ) -> None:
        lines = read_log(plugged)
        assert [line["lr"] for line in lines] == [line["lr"] for line in read_log(plain)]
        assert lines[-1]["lr"] == lines[0]["lr"] / 4
        assert all(line["train"] for line in lines)
        best = max(line["serverapp"]["accuracy"] for line in lines)
        _, of_server = host_data.accuracies(plugged / "best_model.pt")
        assert of_server == pytest.approx(best, abs=HALF_A_POINT)

    @pytest.mark.parametrize("host", ["advanced"], indirect=True)
    def test_nodes_are_flowers_own(self, plugged: Path) -> None:
        nodes = [line["nodes"] for line in read_log(plugged)]
        assert len(nodes[0]) == 2  # fraction-train, of three; later, some have sent everything
        assert all(node > 2**32 for of_round in nodes for node in of_round)


# README.md


def readme_diff() -> dict[str, list[list[str]]]:
    """Return README's plug-in diff: the hunks of each file, as lines."""
    text = (ROOT / "README.md").read_text().split("<!-- plug-in diff -->\n```diff\n", 1)[1]
    hunks: dict[str, list[list[str]]] = {}
    for line in text.split("\n```", 1)[0].split("\n"):
        if name := re.fullmatch(r" # (\w+\.py)", line):
            hunks[name.group(1)] = of_file = [[]]
        elif line.startswith("@@"):
            of_file.append([])
        else:
            of_file[-1].append(line)
    return hunks


def side_of(hunk: list[str], sign: str) -> str:
    """Return the text of a hunk before (``-``) or after (``+``) the change."""
    kept = [line[1:] for line in hunk if not line or line[0] in (" ", sign)]
    return "\n".join(kept).strip("\n") + "\n"


@pytest.fixture
def readme_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """README's two files, patched and imported."""
    monkeypatch.syspath_prepend(str(copy_of("readme", tmp_path / "readme")))
    names = [file.removesuffix(".py") for file in readme_diff()]
    assert names == ["server_app", "client_app"]
    for name in names:
        file = tmp_path / "readme" / f"{name}.py"
        for hunk in readme_diff()[file.name]:
            source, before = file.read_text(), side_of(hunk, "-")
            assert source.count(before) == 1, before
            file.write_text(source.replace(before, side_of(hunk, "+")))
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        del sys.modules[name]


def test_readme_adds_few_lines() -> None:
    hunks = [hunk for of_file in readme_diff().values() for hunk in of_file]
    assert sum(line.startswith("+") for hunk in hunks for line in hunk) <= MOST_ADDED_LINES


@pytest.mark.usefixtures("one_thread")
def test_readme_diff_applies_and_learns(readme_app: dict[str, ModuleType], tmp_path: Path) -> None:
    server, client = readme_app["server_app"], readme_app["client_app"]
    file = tmp_path / "model.pt"
    context = Context(
        run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={"model": str(file)}
    )
    grid = InProcessGrid([client.app, client.app])
    server.main(grid, context)
    net = server.Net()
    net.load_state_dict(torch.load(file))
    pixels, labels = (torch.stack(list(part)) for part in zip(*client.held_out, strict=True))
    with torch.no_grad():
        accuracy = (net(pixels).argmax(dim=1) == labels).float().mean()
    assert accuracy > 0.85
