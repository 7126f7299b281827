"""From activation maps to pseudo masks: background scores, dense CRF, PAMR, random walks along learnt affinities."""
