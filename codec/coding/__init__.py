"""Entropy coding: cursors over bytes, the range coder, and models of symbols."""
