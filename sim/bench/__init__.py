"""What the savings in bytes cost in time, each beside its yardstick in the same run."""
