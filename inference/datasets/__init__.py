"""Readers of public collections: truth for training and evaluation, never an input at inference."""
