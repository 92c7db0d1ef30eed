"""Commands, called in the tests' own process."""

from ldm_jax import cli


def call(command, *argv) -> int:
    """A command's exit code; command: its module."""
    return cli.run(command.__doc__, command.FLAGS, command.main, [str(arg) for arg in argv])
