"""A job on a TPU VM or a pod slice, by a queued resource that is made anew after a preemption.

    python -m launch.tpu --config=configs/NAME.py --workdir=/mnt/runs/NAME --zone=us-central2-b \\
        --accelerator_type=v4-32 --runtime_version=tpu-ubuntu2204-base [--spot] [--dry_run]

The workdir is on gs://, or a path that all hosts and the next slice see (a Filestore share). The
command stays in the foreground: keep it in tmux; called again, it takes up the slice that is there.
"""

import shlex
import time

from launch import job as job_lib
from ldm_jax import cli
from ldm_jax.base import errors

POLL = 30.0  # seconds between two looks at a slice, or two tries of what the cloud refused
TRIES = 10  # of one thing in a row
SHORT = 300.0  # seconds under which a command that ended counts as a try
LOST = {"FAILED", "SUSPENDING", "SUSPENDED"}  # a queued resource does not come back from these
ABSENT = ""


FLAGS = job_lib.flags(
    project=cli.Text("Cloud project; gcloud's own by default.", ""),
    zone=cli.Text("Cloud zone."),
    accelerator_type=cli.Text("Type of the slice, e.g. v4-32 or v5litepod-16."),
    runtime_version=cli.Text("Software of the TPU VM."),
    spot=cli.Switch("Take a cheaper slice, which may be taken away at any time."),
    keep=cli.Switch("Leave the slice when the job is done."),
)


def main(args, overrides):
    cli.require(args, "zone", "accelerator_type", "runtime_version")
    job = job_lib.read(args, overrides, "tpu", devices="tpu", buckets=True)
    shell = job_lib.Shell(args.dry_run)
    slice_ = Slice(args, job, shell)
    archive = job.pack(shell, job_lib.ROOT / job_lib.STAGING / job.name)
    slice_.obtain(tries=1)  # what the cloud refuses at first it refuses for good
    failures = 0
    while True:
        begin = time.monotonic()
        shipped = slice_.ship(archive) == 0
        if shipped and (code := slice_.run()) == 0:
            break
        failures = failures + 1 if time.monotonic() - begin < SHORT else 1
        if slice_.state() != "ACTIVE":
            print("launch: the slice was taken away", flush=True)
            slice_.delete()
            slice_.obtain(tries=TRIES)
        elif failures == TRIES or (shipped and not job_lib.restartable(code)):
            what = f"The job failed with exit code {code}" if shipped else "No host takes the code"
            raise errors.RunError(f"{what}; the output is above. {slice_.remainder()}")
        else:
            time.sleep(POLL)  # a host that is new, or about to go, refuses for a while
    if not args.keep:
        slice_.delete()


class Slice:
    """The queued resource and its one node, both of the job's name."""

    def __init__(self, args, job, shell):
        self._args, self._job, self._shell = args, job, shell
        self._where = [f"--zone={args.zone}"]
        self._where += [f"--project={args.project}"] if args.project else []

    def obtain(self, tries: int):
        """Returns once the slice is there; RunError if the cloud refuses it `tries` times."""
        state = self.state(dry=ABSENT)
        while state != "ACTIVE":
            if state in LOST:
                self.delete()
                state = ABSENT
            if state == ABSENT and (code := self._shell.run(self.creation(), check=False)):
                tries -= 1
                if not tries:
                    raise errors.RunError(f"gcloud ended with {code}; what it said is above.")
            if state != ABSENT or code:
                time.sleep(POLL)
            state = self.state()

    def state(self, dry: str = "ACTIVE") -> str:
        """Of the queued resource, ABSENT where the cloud knows none of that name.

        An answer that fails says nothing of the slice: it is asked for again, TRIES times at most.
        """
        argv = [*self._resource("describe"), "--format=value(state.state)"]
        for _ in range(TRIES):
            state, why = self._shell.ask(argv, dry)
            if not why:
                return state
            if "NOT_FOUND" in why:
                return ABSENT
            print(f"launch: {why.splitlines()[-1]}", flush=True)
            time.sleep(POLL)
        raise errors.RunError(f"gcloud does not answer: {why} {self.remainder()}")

    def remainder(self) -> str:
        return f"{self._job.name} still runs and costs: {shlex.join(self.deletion())}"

    def delete(self):
        self._shell.run(self.deletion())

    def creation(self) -> list[str]:
        args = self._args
        argv = [*self._resource("create"), f"--node-id={self._job.name}"]
        argv += [f"--accelerator-type={args.accelerator_type}"]
        argv += [f"--runtime-version={args.runtime_version}"]
        return argv + (["--spot"] if args.spot else [])

    def deletion(self) -> list[str]:
        return [*self._resource("delete"), "--force", "--quiet"]

    def ship(self, archive) -> int:
        argv = ["gcloud", "compute", "tpus", "tpu-vm", "scp", "--quiet", str(archive)]
        argv += [f"{self._job.name}:{archive.name}", "--worker=all", *self._where]
        return self._shell.run(argv, check=False)

    def run(self) -> int:
        argv = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", self._job.name, "--worker=all"]
        argv += ["--quiet", *self._where, f"--command={self.command()}"]
        return self._shell.run(argv, check=False)

    def command(self) -> str:
        """For the shell of every host, which stands in its home directory."""
        folder = self._job.label
        on_host = ["bash", f"{folder}/launch/on_host.sh", "tpu", *self._job.arguments]
        # A job whose ssh broke may still run: the lock waits for its end.
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
    cli.start(__doc__, FLAGS, main)
