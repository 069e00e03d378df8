"""Samples to bytes and back."""
