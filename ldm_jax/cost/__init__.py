"""The cost of programs: estimated for devices that need not be here, measured on those that are."""
