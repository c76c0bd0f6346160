"""Scores of weights and nodes, one file each; higher = keep. The rows that name them are in ``pruning.registry``."""
