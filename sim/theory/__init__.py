"""The theory's claims, measured on small problems through the real bytes."""
