"""Model cards: one TOML file for each model or algorithm of a profile."""
