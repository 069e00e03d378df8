"""The arithmetic of a fleet, against cases worked out by hand."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from sim.cli.commands import cli
from sim.fleet import DAY, Fleet


def test_by_hand() -> None:
    fleet = Fleet(
        devices=DAY, samples=4, sample_bytes=100, pixels=1_000, reply_bytes=50, decode_ms=500,
        weights=1_000, weight_bytes=0.5, participations=3,
    )  # fmt: skip
    assert fleet.device_uplink == 450 and fleet.uplink == 450 * DAY
    assert fleet.arrivals == 4 and fleet.decoding_cores == 2
    assert fleet.bank == 400 * DAY and fleet.decoded == 4_000 * DAY
    assert fleet.averaging == 3 * 550
    assert fleet.break_even == 16
    even = replace(fleet, samples=fleet.break_even)
    assert even.device_uplink == pytest.approx(even.averaging)


def test_a_million_devices() -> None:
    result = CliRunner().invoke(cli, ["fleet", "--samples", "20"])
    assert result.exit_code == 0
    assert "20,000,000" in result.stdout and "48.5 kB" in result.stdout
    assert CliRunner().invoke(cli, ["fleet", "--devices", "0"]).exit_code
