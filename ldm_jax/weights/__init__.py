"""Conversion of other people's checkpoints: tables of rules, and the function that applies them."""
