"""Does an exported file answer as PyTorch does, and where does it not?"""
