"""The networks. Weights files are 'checkpoints', exported files are 'models', these are 'networks'."""
