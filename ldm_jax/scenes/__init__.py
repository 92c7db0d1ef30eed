"""Procedural scenes: drawn from numbers, checked from pixels, scored against what was asked."""
