"""Random bytes against what reads the bytes of strangers; ``make fuzz`` runs it for long."""
