"""Which architectures, masks and hyperparameters can be searched; pure data, numpy only."""
