"""Samples to bytes and back: sample codecs, and the payload that they fill."""
