"""The rounds of a run as scalars that TensorBoard shows while it goes on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codec.packages import needed_packages, require
from fl_app.run_folder import RoundRecord, read_rounds
from sim.cli.results_folder import TENSORBOARD

_ALL_ROUNDS = 1 << 62
# Tags of the fields of a `RoundRecord`; those with the same beginning stand together.
_TAGS = {
    "accuracy": "test/accuracy",
    "loss": "test/loss",
    "uplink_bytes": "bytes/uplink",
    "downlink_bytes": "bytes/downlink",
    "samples_sent": "samples/sent",
    "steps": "samples/server steps",
}


@contextmanager
def as_scalars(folder: Path, echo: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """Yield an ``echo`` after each line of which new rounds are written for TensorBoard.

    Accuracy is written over rounds, and as ``test/accuracy over uplink`` over bytes.

    Parameters
    ----------
    folder : Path
        Run folder.
    echo : callable
        Gets the lines.

    Raises
    ------
    MissingPackage
        If TensorBoard is not installed.
    """
    require("tensorboard")
    with needed_packages():
        from torch.utils.tensorboard import SummaryWriter
    writer: Any = SummaryWriter(str(folder / TENSORBOARD))
    known: set[int] = set()

    def catch_up() -> None:
        for record in read_rounds(folder, _ALL_ROUNDS):
            if record.round not in known:
                known.add(record.round)
                _write(writer, record)
        writer.flush()

    def tell(line: str) -> None:
        echo(line)
        if "round " in line:
            catch_up()

    try:
        yield tell
    finally:
        catch_up()
        writer.close()


def _write(writer: Any, record: RoundRecord) -> None:
    for field, tag in _TAGS.items():
        value = getattr(record, field)
        if value is not None:
            writer.add_scalar(tag, value, record.round)
    if record.accuracy is not None and record.uplink_bytes:
        writer.add_scalar("test/accuracy over uplink", record.accuracy, record.uplink_bytes)
