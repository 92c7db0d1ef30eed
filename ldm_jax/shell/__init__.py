"""What makes the shell comfortable: the commands by name, what a config may name, completion."""
