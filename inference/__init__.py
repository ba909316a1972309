"""Chest-CT analysis: volumes in, findings out. Knows nothing of the network or the database."""
