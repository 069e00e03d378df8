"""`python -m sim cost` on its smallest case."""

import json
from pathlib import Path

import pytest

from sim.cost import LOCAL_STEP, QUICK, ROUNDS, measure_cost


@pytest.mark.slow
def test_every_stage_is_measured(tmp_path: Path) -> None:
    lines: list[str] = []
    costs = measure_cost(tmp_path, QUICK, repetitions=2, echo=lines.append)
    steps = {cost.stage: cost.steps for cost in costs}
    assert set(ROUNDS) < set(steps)
    assert steps[LOCAL_STEP] == 1
    # Both gradients and a compressor cost more than no gradient.
    assert steps["round with refinement"] > steps["round"] > 0
    assert all(cost.seconds_per_sample > 0 for cost in costs if cost.stage in ROUNDS)
    written = json.loads((tmp_path / "cost.json").read_text())
    assert [row["stage"] for row in written["costs"]] == [cost.stage for cost in costs]
    assert (tmp_path / "cost.png").stat().st_size > 0
    assert any("target" in line for line in lines)
