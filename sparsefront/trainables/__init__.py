"""How candidates are built, trained, pruned and measured, in packs. PyTorch; no Ray, no search."""
