"""Networks, which a stage composes: Linen modules and the pure functions that go with them."""
