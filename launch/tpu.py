"""A job on a TPU VM or a pod slice, by a queued resource that is made anew after a preemption.

    python -m launch.tpu --config=configs/NAME.py --workdir=/mnt/runs/NAME --zone=us-central2-b \\
        --accelerator_type=v4-32 --runtime_version=tpu-ubuntu2204-base [--spot] [--dry_run]

The workdir is a path that all hosts and the next slice see (a Filestore share, a bucket by
gcsfuse). The command stays in the foreground: keep it in tmux; called again, it takes up the slice
that is there.
"""

import shlex
import time

from absl import flags

from launch import job as job_lib
from ldm_jax import cli
from ldm_jax.base import errors

POLL = 30.0  # seconds between two looks at a slice that is not there yet
LOST = {"FAILED", "SUSPENDING", "SUSPENDED"}  # a queued resource does not come back from these
ABSENT = ""


def define(values):
    job_lib.define(values)
    flags.DEFINE_string("project", "", "Cloud project; gcloud's own by default", flag_values=values)
    flags.DEFINE_string("zone", None, "Cloud zone", flag_values=values)
    flags.DEFINE_string("accelerator_type", None, "e.g. v4-32, v5litepod-16", flag_values=values)
    flags.DEFINE_string("runtime_version", None, "the TPU VM's software", flag_values=values)
    flags.DEFINE_bool("spot", False, "cheaper, and taken away at any time", flag_values=values)
    flags.DEFINE_bool("keep", False, "leave the slice when the job is done", flag_values=values)


def main(args, overrides):
    cli.require(args, "zone", "accelerator_type", "runtime_version")
    job = job_lib.read(args, overrides, "tpu", devices="tpu")
    hands = job_lib.Hands(args.dry_run)
    slice_ = Slice(args, job, hands)
    archive = job.pack(hands, job_lib.ROOT / job_lib.STAGING / job.name)
    while True:
        slice_.obtain()
        code = slice_.ship(archive) or slice_.train()
        if code == 0:
            break
        if slice_.state() != "ACTIVE":
            print("launch: the slice was taken away", flush=True)
            slice_.delete()
        elif not job_lib.restartable(code):
            raise errors.RunError(
                f"The job failed with exit code {code}; its output is above. {job.name} still "
                f"runs and costs: {shlex.join(slice_.deletion())}"
            )
    if not args.keep:
        slice_.delete()


class Slice:
    """The queued resource and its one node, both of the job's name."""

    def __init__(self, args, job, hands):
        self._args, self._job, self._hands = args, job, hands
        self._where = [f"--zone={args.zone}"]
        self._where += [f"--project={args.project}"] if args.project else []

    def obtain(self):
        """Returns once the slice is there."""
        state = self.state(dry=ABSENT)
        while state != "ACTIVE":
            if state in LOST:
                self.delete()
                state = ABSENT
            if state == ABSENT:
                self._hands.run(self.creation())
            else:
                time.sleep(POLL)
            state = self.state()

    def state(self, dry: str = "ACTIVE") -> str:
        argv = [*self._resource("describe"), "--format=value(state.state)"]
        return self._hands.ask(argv, dry)

    def delete(self):
        self._hands.run(self.deletion())

    def creation(self) -> list[str]:
        args = self._args
        argv = [*self._resource("create"), f"--node-id={self._job.name}"]
        argv += [f"--accelerator-type={args.accelerator_type}"]
        argv += [f"--runtime-version={args.runtime_version}"]
        return argv + (["--spot"] if args.spot else [])

    def deletion(self) -> list[str]:
        return [*self._resource("delete"), "--force", "--quiet"]

    def ship(self, archive) -> int:
        argv = ["gcloud", "compute", "tpus", "tpu-vm", "scp", str(archive)]
        argv += [f"{self._job.name}:{archive.name}", "--worker=all", *self._where]
        return self._hands.run(argv, check=False)

    def train(self) -> int:
        argv = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", self._job.name, "--worker=all"]
        argv += [*self._where, f"--command={self.command()}"]
        return self._hands.run(argv, check=False)

    def command(self) -> str:
        """For the shell of every host, which stands in its home directory."""
        folder = self._job.label
        on_host = ["bash", f"{folder}/launch/on_host.sh", "tpu", *self._job.train]
        # A training whose ssh broke may still run: the lock waits for its end.
        steps = [
            ["mkdir", "-p", folder],
            ["tar", "-xzf", f"{folder}.tar.gz", "-C", folder],
            ["exec", "flock", f"{self._job.name}.lock", "env", "LDM_HOSTS=auto", *on_host],
        ]
        return " && ".join(map(shlex.join, steps))

    def _resource(self, verb: str) -> list[str]:
        argv = ["gcloud", "compute", "tpus", "queued-resources", verb, self._job.name]
        return argv + self._where


if __name__ == "__main__":
    cli.start(__doc__, define, main)
