"""What programs cost: planned for devices that are elsewhere, timed on those that are here."""
