"""Flower strategies that learn from clients' quantized samples."""

from strategies.ledger import Ledger, LedgerEntry
from strategies.quantized_data import QuantizedDataStrategy, RoundResult
from strategies.quantized_data_replay import QuantizedDataReplay, train_on_bank
from strategies.quantized_data_sgd import QuantizedDataSGD
from strategies.reply import BadReply, Reply, parse_reply
from strategies.sample_bank import SampleBank
from strategies.server_model import ServerModel

__all__ = [
    "BadReply",
    "Ledger",
    "LedgerEntry",
    "QuantizedDataReplay",
    "QuantizedDataSGD",
    "QuantizedDataStrategy",
    "Reply",
    "RoundResult",
    "SampleBank",
    "ServerModel",
    "parse_reply",
    "train_on_bank",
]
