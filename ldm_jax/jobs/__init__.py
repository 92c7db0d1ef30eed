"""Work by the thousand pictures: drawing, editing, encoding, in shards that survive a kill."""
