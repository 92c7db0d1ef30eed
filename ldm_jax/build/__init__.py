"""From a config to data, networks and stages: where the keys of a config meet arguments."""
