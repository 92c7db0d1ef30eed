"""Serves a page in the browser on which runs are asked for pictures.

    python -m ldm_jax.demo --run=runs/quickstart/ldm    # wants Gradio
    python -m ldm_jax.demo --run=RUN,RUN --port=7861

It offers what the run is conditioned on (a caption, a class, boxes and maps painted with the mouse,
a picture to enlarge or to paint over), seed, steps, sampler and guidance, shows the way to a
picture, and keeps the settings in the PNGs. With several runs, such as a student and its teacher,
their times stand below one another. The page answers this machine alone, unless --share_on says
otherwise: it has no passwords, and whoever reaches it makes this machine work. Needs Gradio.
"""

import ipaddress
import os

from ldm_jax import cli
from ldm_jax.base import errors

FLAGS = dict(
    run=cli.Listed("Folders of trained second stages."),
    port=cli.Integer("Port to listen on.", 7860, least=1, most=65535),
    host=cli.Text("Address to listen on.", "127.0.0.1"),
    share_on=cli.Switch("Let other machines reach the page, by --host."),
)


def main(args, overrides):
    cli.refuse_overrides(overrides)
    cli.require(args, "run")
    if not args.share_on and not _is_own(args.host):
        raise errors.UsageError(
            f"--host={args.host} lets other machines make this one work: add --share_on if that is "
            "meant."
        )
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as e:
        raise errors.UsageError(f"The page needs Gradio ({e}): pip install gradio") from e
    from ldm_jax.jobs import page

    built = page.build(list(args.run), gradio)
    try:
        built.launch(
            server_name=args.host, server_port=args.port, share=False, max_file_size=page.UPLOAD
        )
    except OSError as e:
        raise errors.UsageError(f"--port={args.port}: {errors.reason(e)}; take another.") from e


def _is_own(host: str) -> bool:
    """Whether an address is this machine's for itself alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
