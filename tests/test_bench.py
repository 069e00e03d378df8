"""`python -m sim bench` on its smallest case."""

import json
from pathlib import Path

import pytest

from codec.compilation import is_compiled
from sim.bench import COMPILED, NUMPY, WEBP, measure_bench


def test_coders_are_timed_beside_webp_at_equal_error(tmp_path: Path) -> None:
    table = measure_bench(tmp_path, "", 1, quick=True)
    rows = json.loads((tmp_path / "bench.json").read_text())["encoding"]
    coders = {WEBP, NUMPY} | ({COMPILED} if is_compiled() else set())
    assert {row["coder"] for row in rows} == coders
    assert {row["payload"] for row in rows} == {1, 10}
    assert len(table) == 1 + len(rows)
    for row in rows:
        assert row["encode"] > 0 and row["decode"] > 0
        same = [other for other in rows if other["payload"] == row["payload"]]
        psnr = {other["coder"]: other["psnr"] for other in same}
        assert psnr[WEBP] >= psnr[NUMPY] - 0.01
        if row["coder"] == WEBP:
            assert row["encode_vs_webp"] == {"median": 1, "min": 1, "max": 1}
        if row["coder"] == COMPILED:
            assert row["bytes_per_image"] == next(
                other["bytes_per_image"] for other in same if other["coder"] == NUMPY
            )
            assert row["psnr"] == pytest.approx(psnr[NUMPY])
