"""Flower strategies that learn from clients' quantized samples.

The baselines they are measured against are in `strategies.baselines`.
"""

from codec.packages import needed_packages

with needed_packages():
    from strategies.errors import RunFailed
    from strategies.ledger import Ledger, LedgerEntry
    from strategies.received import BadReply
    from strategies.rehearsal import RehearsalError
    from strategies.replay import QuantizedDataReplay, train_on_bank
    from strategies.round_book import RoundBook, RoundResult
    from strategies.sample_bank import SampleBank
    from strategies.server_model import DivergedError, ServerModel
    from strategies.server_strategy import ServerStrategy
    from strategies.streaming import QuantizedDataStreaming

__all__ = [
    "BadReply",
    "DivergedError",
    "Ledger",
    "LedgerEntry",
    "QuantizedDataReplay",
    "QuantizedDataStreaming",
    "RehearsalError",
    "RoundBook",
    "RoundResult",
    "RunFailed",
    "SampleBank",
    "ServerModel",
    "ServerStrategy",
    "train_on_bank",
]
