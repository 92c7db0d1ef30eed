"""A job on GKE as a JobSet of TPU slices; Kubernetes starts it again when a slice is lost.

    python -m launch.gke --config=configs/NAME.py --workdir=/runs/NAME --claim=RUNS \\
        --image=REGISTRY/ldm --accelerator=tpu-v5-lite-podslice --topology=4x4 [--slices=2]

--claim is a PersistentVolumeClaim that all pods may write (Filestore, a bucket by the gcsfuse
driver), mounted at --mount, under which the workdir lies. The cluster needs the JobSet controller.
"""

import math
import pathlib

import yaml

from launch import job as job_lib
from ldm_jax import cli
from ldm_jax.base import errors

FINAL = [cli.EXIT_FAILED, cli.EXIT_USAGE]  # exit codes that no restart can mend


FLAGS = job_lib.flags(
    image=cli.Text("Registry and name to push the image to."),
    accelerator=cli.Text("The label gke-tpu-accelerator of the nodes."),
    topology=cli.Text("The label gke-tpu-topology of the nodes, e.g. 4x4."),
    chips=cli.Integer("TPU chips of each host.", 4, least=1),
    slices=cli.Integer("How many slices of that topology.", 1, least=1),
    claim=cli.Text("PersistentVolumeClaim of the runs."),
    mount=cli.Text("Folder where the claim is mounted.", "/runs"),
    namespace=cli.Text("Namespace of Kubernetes.", "default"),
    max_restarts=cli.Integer("How often the JobSet starts again at most.", 1000, least=0),
    spot=cli.Switch("Take cheaper machines, which may be taken away at any time."),
)


def main(args, overrides):
    cli.require(args, "image", "accelerator", "topology", "claim")
    hosts = args.slices * hosts_of_a_slice(args)
    job = job_lib.read(args, overrides, "gke", devices="tpu", hosts=hosts)
    if job.command != "train" and args.slices > 1:
        raise errors.UsageError(f"--slices={args.slices}: only training spans several slices.")
    job.check_under(args.mount)
    shell = job_lib.Shell(args.dry_run)
    folder = job_lib.ROOT / job_lib.STAGING / job.name
    archive, image = job.pack(shell, folder), f"{args.image}:{job.label}"
    how = [f"--tag={image}", "--file=launch/Dockerfile", "--build-arg=KIND=tpu"]
    shell.run(["docker", "build", *how, "-"], stdin=archive)
    shell.run(["docker", "push", image])
    file = pathlib.Path(folder) / f"{job.label}.yaml"
    shell.write(file, yaml.safe_dump(jobset(args, job, image), sort_keys=False))
    shell.run(["kubectl", "apply", f"--namespace={args.namespace}", f"--filename={file}"])


def jobset(args, job, image: str) -> dict:
    """The JobSet: a Job per slice, a pod per host; exit codes 1 and 2 end it, others restart it."""
    hosts = hosts_of_a_slice(args)
    selector = {
        "cloud.google.com/gke-tpu-accelerator": args.accelerator,
        "cloud.google.com/gke-tpu-topology": args.topology,
    } | ({"cloud.google.com/gke-spot": "true"} if args.spot else {})
    container = {
        "name": job.command,
        "image": image,
        "args": list(job.arguments),
        "ports": [{"containerPort": 8471}, {"containerPort": 8080}],
        "resources": {"limits": {"google.com/tpu": args.chips}},
        "volumeMounts": [
            {"name": "runs", "mountPath": args.mount},
            {"name": "memory", "mountPath": "/dev/shm"},
        ],
    }
    pod = {
        "restartPolicy": "Never",  # one lost host means that all begin again, together
        "terminationGracePeriodSeconds": 300,
        "nodeSelector": selector,
        "containers": [container],
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": args.claim}},
            # The usual 64 MB are too little for batches from reading processes (data.workers).
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
        ],
    }
    final = {"containerName": job.command, "operator": "In", "values": FINAL}
    slice_ = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": final}]},
        # Without the annotation a claim on a bucket is never mounted; others do not look at it.
        "template": {"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}}, "spec": pod},
    }
    stop = {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": job.name, "annotations": exclusive},
        "spec": {
            "failurePolicy": {"maxRestarts": args.max_restarts, "rules": [stop]},
            "replicatedJobs": [
                {"name": "slice", "replicas": args.slices, "template": {"spec": slice_}}
            ],
        },
    }


def hosts_of_a_slice(args) -> int:
    """Raises UsageError for a topology that is none."""
    sides = args.topology.split("x")
    if not all(side.isdecimal() and int(side) for side in sides):
        raise errors.UsageError(f"--topology={args.topology} must read like 4x4 or 2x2x2.")
    return math.ceil(math.prod(map(int, sides)) / args.chips)


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
