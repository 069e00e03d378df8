"""What Flower does to the entries of a message between two ends."""

from typing import Any

from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto


def through_flower(entries: dict[str, Any]) -> ConfigRecord:
    """Entries as they arrive at the other end."""
    proto = recorddict_to_proto(RecordDict({"config": ConfigRecord(entries)}))
    again = recorddict_from_proto(type(proto).FromString(proto.SerializeToString()))["config"]
    assert isinstance(again, ConfigRecord)
    return again
