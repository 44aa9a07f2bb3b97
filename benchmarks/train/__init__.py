"""The training step against PyTorch."""
