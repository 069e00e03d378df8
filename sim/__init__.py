"""Runs of the app on this machine: the launcher and what is compared with it."""
