"""What the server has received: coded at rest, in memory or in a file that outlives the run."""

from strategies.errors import BankError, BankFull
from strategies.sample_bank.bank import DEFAULT_MEMORY_LIMIT, SampleBank
from strategies.sample_bank.records import Added, Origin, StoredReply

__all__ = [
    "DEFAULT_MEMORY_LIMIT",
    "Added",
    "BankError",
    "BankFull",
    "Origin",
    "SampleBank",
    "StoredReply",
]
