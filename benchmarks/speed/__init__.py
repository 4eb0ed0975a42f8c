"""How much of an engine's speed is left behind a gateway: ``make bench``."""
