"""Flower strategies that learn from clients' quantized samples, and their rivals."""

from strategies.accounted_strategy import AccountedStrategy, RoundResult
from strategies.baselines.fed_avg import CompressedFedAvg
from strategies.baselines.gradient_compression import GradientCompression
from strategies.client_reply import BadReply
from strategies.ledger import Ledger, LedgerEntry
from strategies.quantized_data import QuantizedDataStrategy
from strategies.replay import QuantizedDataReplay, train_on_bank
from strategies.reply import Reply, parse_reply
from strategies.sample_bank import SampleBank
from strategies.server_model import ServerModel
from strategies.server_strategy import ServerStrategy
from strategies.streaming import QuantizedDataSGD

__all__ = [
    "AccountedStrategy",
    "BadReply",
    "CompressedFedAvg",
    "GradientCompression",
    "Ledger",
    "LedgerEntry",
    "QuantizedDataReplay",
    "QuantizedDataSGD",
    "QuantizedDataStrategy",
    "Reply",
    "RoundResult",
    "SampleBank",
    "ServerModel",
    "ServerStrategy",
    "parse_reply",
    "train_on_bank",
]
