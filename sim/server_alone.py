"""The replay server's own loop on samples that are there already: no client, no message."""

from collections.abc import Iterator

from fl_app.config import RunConfig
from fl_app.data import Images
from fl_app.images import ImageKind
from fl_app.run_folder import RoundRecord
from fl_app.server_app import make_strategy, measure, set_threads
from strategies import QuantizedDataReplay, SampleBank
from strategies.processes import Processes
from strategies.server_strategy import is_due

ALONE = Processes()


def make_server(
    config: RunConfig, kind: ImageKind, bank: SampleBank, processes: Processes = ALONE
) -> QuantizedDataReplay:
    """Return the server of a replay run of which all samples have arrived."""
    strategy = make_strategy(config, kind)
    assert isinstance(strategy, QuantizedDataReplay)
    set_threads(config.threads, strategy.model)
    strategy.bank = bank
    strategy.server_model.share_steps(processes)
    return strategy


def rounds_alone(
    strategy: QuantizedDataReplay, config: RunConfig, test: Images | None, kind: ImageKind
) -> Iterator[RoundRecord]:
    """Train as a run does that asks nobody, and yield each round.

    The run's seed, schedule, augmentation, batch size and steps; its rounds are evaluated as often.
    """
    for server_round in range(1, config.num_rounds + 1):
        strategy.learn(server_round)
        due = is_due(server_round, config.eval_every, config.num_rounds)
        yield measure(strategy, server_round, test, kind, evaluated=due, flip=config.test_flip)
