"""What the server has received: coded at rest, in memory or in a file that outlives the run."""

from strategies.errors import BankError, BankFull
from strategies.sample_bank.arrays import DEFAULT_MEMORY_LIMIT
from strategies.sample_bank.bank import SampleBank
from strategies.sample_bank.dataset import BankDataset
from strategies.sample_bank.records import Added, Origin, StoredReply

__all__ = [
    "DEFAULT_MEMORY_LIMIT",
    "Added",
    "BankDataset",
    "BankError",
    "BankFull",
    "Origin",
    "SampleBank",
    "StoredReply",
]
