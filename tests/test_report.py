"""The report of a run: its numbers are those of the run, its pictures what was sent."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from inprocess_grid import Client, InProcessGrid
from PIL import Image
from report_page import Page

from fl_app.client_app import app as client_app
from fl_app.data import load
from fl_app.report import REPORT, ReportError, try_report, write_report
from fl_app.report.arrived import Arrived
from fl_app.report.evidence import Evidence, Excerpt
from fl_app.report.originals import Originals
from fl_app.report.run import read_run
from fl_app.report.style import STYLE
from fl_app.run_folder import RUN_CONFIG, read_config, write_config
from fl_app.server_app import app as server_app
from sim.__main__ import main

CLIENTS = 3
HOSTILE = "<script>alert(1)<"  # a folder's name may hold it
CONFIG: dict[str, Any] = {
    "model": "logistic",
    "num-rounds": 3,
    "server-steps": 20,
    "learning-rate": 0.05,
    "samples-per-round": 40,
    "max-train-samples": 600,
    "importance": "loss",
    "keep-rate": 0.4,
    "codec": "dct",
    "client-key": "partition",
    "threads": 1,
}
MOST_BYTES = 3_000_000


def run_app(folder: Path, client: Client = client_app, **changes: Any) -> Path:
    """Run the app in this process; leave what the launcher of a simulation leaves, too."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    own = {"out-dir": str(folder), "state-dir": str(folder / "devices")}
    config = {**CONFIG, **own, **{k.replace("_", "-"): v for k, v in changes.items()}}
    grid = InProcessGrid([client] * CLIENTS)
    for context in grid.contexts.values():
        context.run_config.update(config)
    server_app(grid, Context(1, 1, {}, RecordDict(), config))
    write_config(folder, read_config(folder)[RUN_CONFIG], clients=CLIENTS)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_app(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_app(tmp_path_factory.mktemp("runs") / "coarse", step=1.5)


def result_of(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def page_of(*folders: Path, out: Path) -> Page:
    return Page(write_report(folders, out))


def without_errors(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def test_a_run_ends_with_its_report(run: Path) -> None:
    page = Page(run / REPORT)
    assert page.headline["accuracy"] == result_of(run)["accuracy"]


def test_numbers_are_those_of_the_results(run: Path, tmp_path: Path) -> None:
    page, result, rounds = page_of(run, out=tmp_path / "a.html"), result_of(run), rounds_of(run)
    told = {key: result[key] for key in page.headline if key not in ("failures", "seconds")}
    assert {key: page.headline[key] for key in told} == told
    assert {"accuracy", "uplink_bytes", "downlink_bytes", "samples_sent"} <= told.keys()
    assert page.headline["seconds"] == result["seconds"]["total"]
    assert page.headline["failures"] == 0
    accuracy = page.tables["Test accuracy by round; bytes are totals of all clients"]
    keys = ("round", "accuracy", "uplink_bytes", "downlink_bytes", "samples_sent")
    assert [[cell[1] for cell in row] for row in accuracy] == [[r[k] for k in keys] for r in rounds]
    for caption, key in (("uplink", "sections"), ("downlink", "downlink_sections")):
        told = page.column(f"Bytes by section, {caption}", 1)
        assert told == without_errors(result[key])
        assert sum(told.values()) == result[f"{caption}_bytes"]
    for number, way in ((1, "uplink"), (2, "downlink")):
        by_client = page.column("Bytes by client", number)
        assert set(by_client) == {f"client {k}" for k in range(CLIENTS)}
        assert sum(by_client.values()) == result[f"{way}_bytes"]
    ways = page.column("Bytes by direction", 2)
    assert ways == result["envelope_bytes"]
    seconds = page.column("Device seconds by stage", 1)
    assert seconds == {
        key.removeprefix("client_"): value
        for key, value in result["seconds"].items()
        if key.startswith("client_")
    }
    balance = page.tables["Class balance"]
    assert sum(row[1][1] or 0 for row in balance) == CONFIG["max-train-samples"]
    assert sum(row[2][1] or 0 for row in balance) == result["samples_sent"]
    config = {row[0][0]: row[1][0] for row in page.tables["All of the run config"]}
    assert config["importance"] == "loss" and config["step"] == "0.5"
    assert {row[0][0]: row[1][0] for row in page.tables["Versions"]} == result["versions"]


def test_the_page_is_one_file_that_loads_nothing_and_can_be_read(run: Path, tmp_path: Path) -> None:
    page = page_of(run, out=tmp_path / "a.html")
    assert len(page.text.encode()) < MOST_BYTES
    assert page.loads() == [] and page.unclosed == []
    outside = re.findall(r"https?://[^\"\s]+", page.text)
    assert set(outside) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv")]
    assert "default-src 'none'" in policy and "img-src data:" in policy
    script = re.search(r"<script>(.*?)</script>", page.text, re.S)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert not [name for _, attributes in page.tags for name in attributes if name[:2] == "on"]
    assert len(page.all("h1")) == 1 and page.all("html") == [{"lang": "en"}]
    assert [m for m in page.all("meta") if m.get("name") == "viewport"]
    assert "prefers-color-scheme: dark" in page.text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for a in page.all("a")]
    assert "main" in targets and set(targets) <= set(ids)
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in page.all("svg"))
    assert len(page.all("summary")) == len(page.all("details")) > 5
    labelled = {label["for"] for label in page.all("label")}
    assert labelled == {one["id"] for one in page.all("input")}


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` (WCAG 2.2)."""
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_lines_stand_out(scheme: int) -> None:
    block = re.findall(r":root \{(.*?)\}", STYLE, re.S)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    needed = {"ink": 4.5, "muted": 4.5, "accent": 4.5}
    needed |= {name: 3.0 for name in colours if name.startswith("series")}
    assert len(needed) == 11
    for name, least in needed.items():
        for ground in ("page", "card"):
            pair = sorted((luminance(colours[name]), luminance(colours[ground])))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= least, (name, ground)


def test_pictures_are_what_arrived_and_its_originals(run: Path) -> None:
    evidence = Evidence(read_run(run))
    excerpt, originals, arrived = evidence.excerpt, evidence.originals, evidence.arrived
    assert isinstance(excerpt, Excerpt) and isinstance(originals, Originals)
    assert isinstance(arrived, Arrived) and len(arrived) == result_of(run)["samples_sent"]
    known = excerpt.originals >= 0
    assert known.mean() > 0.95  # tags of two bytes agree by chance, too
    images = load("mnist5k", "train")
    of = excerpt.originals[known]
    assert (images.labels[of] == arrived.labels[excerpt.rows[known]]).all()
    assert (originals.clients[of] == arrived.clients[excerpt.rows[known]]).all()
    distance = np.abs(images.samples[of].astype(np.float32) - excerpt.samples[known])
    others = np.abs(images.samples[np.roll(of, 1)].astype(np.float32) - excerpt.samples[known])
    assert (distance.mean((1, 2, 3)) < others.mean((1, 2, 3))).all()
    sent = evidence.found[1]
    assert (sent > 0).sum() <= len(arrived) <= (sent != 0).sum()


def test_pictures_tell_class_bytes_and_importance(run: Path, tmp_path: Path) -> None:
    page = page_of(run, out=tmp_path / "a.html")
    assert re.search(r"class \d · client \d · loss \d+\.\d\d", page.words)
    for words in ("original 784 B", "arrived step 0.5", "step 0.25", "step 1 ", "step 2 "):
        assert words in page.words, words
    sizes = {
        step: [int(n) for n in re.findall(rf"step {re.escape(step)} (\d+) B", page.words)]
        for step in ("0.25", "0.5", "1", "2")
    }
    means = [np.mean(sizes[step]) for step in ("0.25", "0.5", "1", "2")]
    assert means == sorted(means, reverse=True) and means[-1] > 0
    assert "Kept: " in page.words and "Dropped: " in page.words
    assert "error" in page.words and "difference, twofold" in page.words
    first = page.all("img")[0]["src"].removeprefix("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(first))) as image:
        assert image.size == (28, 28)


def test_the_command_repeats_the_run(run: Path, tmp_path: Path) -> None:
    page = page_of(run, out=tmp_path / "a.html")
    assert f"python -m sim run --clients {CLIENTS} --config " in page.words
    command = read_run(run).command()
    pairs = dict(pair.split("=") for pair in command.split(" --config ")[1].split())
    changed = {k: str(v) for k, v in CONFIG.items() if k not in ("client-key", "num-rounds")}
    assert pairs == {**changed, "num-rounds": "3"}
    assert str(tmp_path) not in command


def test_several_runs_stand_side_by_side(run: Path, coarse: Path, tmp_path: Path) -> None:
    third = tmp_path / "third" / "first"  # of the same name
    shutil.copytree(run, third)
    page = page_of(run, coarse, third, out=tmp_path / "three.html")
    assert len(page.text.encode()) < MOST_BYTES and page.loads() == [] and page.unclosed == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    names = ["first (1)", "coarse", "first (3)"]
    rows = {row[0][0]: [cell[1] for cell in row[1:]] for row in page.tables["Of the whole run"]}
    results = [result_of(folder) for folder in (run, coarse, third)]
    assert rows["test accuracy"] == [result["accuracy"] for result in results]
    assert rows["uplink, all clients"] == [result["uplink_bytes"] for result in results]
    differing = {
        row[0][0]: [cell[0] for cell in row[1:]] for row in page.tables["Where the runs differ"]
    }
    assert differing["step"] == ["0.5", "1.5", "0.5"] and "importance" not in differing
    assert all(name in page.words for name in names)
    assert "arrived in all of the runs" in page.words
    assert len(page.tables["Test accuracy by round; bytes are totals of all clients"]) == 3 * 4


def test_what_an_old_run_did_not_write_is_left_out_with_the_reason(
    run: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(run, old)
    result = result_of(old)
    for key in ("nodes", "downlink_sections", "variance_kept", "duplicates"):
        del result[key]
    result["config"]["a-key-of-before"] = 1
    (old / "result.json").write_text(json.dumps(result))
    for name in ("bank.sqlite", "config.json", "model.safetensors"):
        (old / name).unlink()
    page = page_of(old, out=tmp_path / "old.html")
    assert page.headline["accuracy"] == result["accuracy"]
    for words in (
        "Bytes by client are not in result.json",
        "Bytes by section of the downlink are not in result.json",
        "there is no bank.sqlite",
    ):
        assert words in page.words, words


def test_a_run_that_has_not_ended_is_shown_as_far_as_it_is(run: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    shutil.copytree(run, begun)
    (begun / "result.json").unlink()
    page = page_of(begun, out=tmp_path / "begun.html")
    assert "The run has not ended" in page.words
    assert page.headline["uplink_bytes"] == rounds_of(run)[-1]["uplink_bytes"]


def test_without_the_data_set_what_arrived_is_shown_alone(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    config = read_config(moved)[RUN_CONFIG]
    write_config(moved, {**config, "dataset": "cifar10", "data-dir": str(tmp_path / "none")})
    page = page_of(moved, out=tmp_path / "moved.html")
    assert "The originals are not here" in page.words and "This is what arrived" in page.words
    assert len(page.all("img")) == 24
    assert "original 784 B" not in page.words


def test_names_of_classes_and_config_are_text(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in (HOSTILE, "a & b"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(8):
                pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{number}.png")
    folder = run_app(
        tmp_path / "<b>run", dataset="imagefolder", image_size=8, data_dir=str(tmp_path / "data"),
        max_train_samples=0,
    )  # fmt: skip
    entries = read_config(folder)[RUN_CONFIG]
    write_config(folder, {**entries, "codec-note": '"><img src=x onerror=alert(1)>'})
    page = page_of(folder, out=tmp_path / "a.html")
    assert HOSTILE in page.words and "a & b" in page.words
    assert len(page.all("script")) == 1 and not page.all("b")
    assert page.loads() == [] and page.unclosed == []
    assert not [name for _, attributes in page.tags for name in attributes if name[:2] == "on"]


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        ("streaming", "strategy streaming keeps no samples on the server"),
        ("gradient", "Strategy gradient sends no samples"),
    ],
)
def test_strategies_that_keep_no_samples(strategy: str, told: str, tmp_path: Path) -> None:
    extra = {"importance": "all", "keep_rate": 1.0} if strategy == "gradient" else {}
    page = Page(run_app(tmp_path / strategy, strategy=strategy, **extra) / REPORT)
    assert told in page.words
    assert page.headline["uplink_bytes"] == result_of(tmp_path / strategy)["uplink_bytes"]
    assert bool(page.all("img")) == (strategy == "streaming")


def test_failures_are_told_by_node_and_cause(tmp_path: Path) -> None:
    def failing(msg: Any, context: Context) -> Any:
        if context.node_config["partition-id"] == 1:
            raise OSError("no camera")
        return client_app(msg, context)

    folder = run_app(tmp_path / "run", failing)
    result, page = result_of(folder), Page(folder / REPORT)
    assert page.headline["failures"] == sum(result["failures"].values()) == 3
    assert page.column("Replies that failed, by cause", 1) == {"error": 3}
    rows = page.tables["Replies that failed, by node and cause"]
    assert len(rows) == 1 and rows[0][1][1] == 3
    (node,) = [node for node, told in result["nodes"].items() if told["failures"]]
    assert node in rows[0][0][0]


def test_the_command_writes_the_page(
    run: Path, coarse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert main(["report", str(run), str(coarse), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"report: {out}\n"
    assert Page(out).tables["Of the whole run"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], r"nowhere is no run folder: .* name the folder"),
        (["RUN", "--out", "no/such/folder.html"], r"cannot write .*; name another file with --out"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str],
    told: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", *(str(run) if a == "RUN" else a for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert re.search(told, error) and error.count("\n") == 1


def test_a_report_that_fails_is_a_warning(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(folder: Path) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("fl_app.report.read_run", broken)
    assert try_report(run) is None
    assert "no report of" in caplog.text and "a bug" in caplog.text
    with pytest.raises(KeyError):
        write_report([run], tmp_path / "a.html")
    monkeypatch.undo()
    with pytest.raises(ReportError, match="is no run folder"):
        write_report([tmp_path], tmp_path / "a.html")


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium")
def test_a_browser_shows_it_without_a_network(run: Path, coarse: Path, tmp_path: Path) -> None:
    write_report([run], tmp_path / "one.html")
    write_report([run, coarse, run], tmp_path / "three.html")
    for name in ("one", "three"):
        page = tmp_path / f"{name}.html"
        dumped = in_browser(tmp_path, "--dump-dom", page.as_uri())
        (tmp_path / "dumped.html").write_text(dumped)
        shown = Page(tmp_path / "dumped.html")
        # The script has run, so that its digest is the policy's.
        assert "Round 3: " in shown.words
        before = Page(page)
        assert shown.tables == before.tables and shown.headline == before.headline
        picture = tmp_path / f"{name}.png"
        in_browser(tmp_path, f"--screenshot={picture}", "--window-size=1200,900", page.as_uri())
        with Image.open(picture) as image:
            assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 100


def in_browser(folder: Path, *arguments: str) -> str:
    """Run a headless browser that reaches no host, and return what it prints."""
    assert CHROMIUM is not None
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}",
    ]
    done = subprocess.run(
        [CHROMIUM, *flags, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "Content Security Policy" not in done.stderr
    return done.stdout
