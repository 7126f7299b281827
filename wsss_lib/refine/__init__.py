"""From activation maps to pseudo masks: background scores, dense CRF, a pool of processes (no torch here)."""
