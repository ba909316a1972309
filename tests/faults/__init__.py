"""Attacks and faults, each provable alone; ``make faults`` runs the long forms."""
