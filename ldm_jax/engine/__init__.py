"""Layer 4: the loop that trains any stage. Knows players, batches and files; knows no model."""
