"""Faults on purpose: processes killed, replies spoiled, disks filled; and every sample counted."""
