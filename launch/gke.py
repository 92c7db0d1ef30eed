"""A job on GKE as a JobSet of TPU slices; Kubernetes starts it again when a slice is lost.

    python -m launch.gke --config=configs/NAME.py --workdir=/runs/NAME --claim=RUNS \\
        --image=REGISTRY/ldm --accelerator=tpu-v5-lite-podslice --topology=4x4 [--slices=2]

--claim is a PersistentVolumeClaim that all pods may write (Filestore, a bucket by the gcsfuse
driver), mounted at --mount, under which the workdir lies. The cluster needs the JobSet controller.
"""

import math
import pathlib

import yaml
from absl import flags

from launch import job as job_lib
from ldm_jax import cli
from ldm_jax.base import errors

FINAL = [cli.EXIT_FAILED, cli.EXIT_USAGE]  # exit codes that no restart can mend


def define(values):
    job_lib.define(values)
    flags.DEFINE_string("image", None, "registry/name to push the image to", flag_values=values)
    flags.DEFINE_string("accelerator", None, "gke-tpu-accelerator label", flag_values=values)
    flags.DEFINE_string("topology", None, "gke-tpu-topology label, e.g. 4x4", flag_values=values)
    flags.DEFINE_integer("chips", 4, "TPU chips per host", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("slices", 1, "slices of that topology", lower_bound=1, flag_values=values)
    flags.DEFINE_string("claim", None, "PersistentVolumeClaim of the runs", flag_values=values)
    flags.DEFINE_string("mount", "/runs", "where it is mounted", flag_values=values)
    flags.DEFINE_string("namespace", "default", "Kubernetes namespace", flag_values=values)
    flags.DEFINE_integer("max_restarts", 1000, "of the JobSet", flag_values=values)
    flags.DEFINE_bool("spot", False, "cheaper, and taken away at any time", flag_values=values)


def main(args, overrides):
    cli.require(args, "image", "accelerator", "topology", "claim")
    job = job_lib.read(args, overrides, "gke", devices="tpu")
    if not job.workdir.is_relative_to(args.mount):
        raise errors.UsageError(f"--workdir={job.workdir} must lie under --mount={args.mount}.")
    hands = job_lib.Hands(args.dry_run)
    folder = job_lib.ROOT / job_lib.STAGING / job.name
    archive, image = job.pack(hands, folder), f"{args.image}:{job.label}"
    build = [
        "docker",
        "build",
        f"--tag={image}",
        "--file=launch/Dockerfile",
        "--build-arg=KIND=tpu",
    ]
    hands.run([*build, "-"], stdin=archive)
    hands.run(["docker", "push", image])
    file = pathlib.Path(folder) / f"{job.label}.yaml"
    hands.write(file, yaml.safe_dump(jobset(args, job, image), sort_keys=False))
    hands.run(["kubectl", "apply", f"--namespace={args.namespace}", f"--filename={file}"])


def jobset(args, job, image: str) -> dict:
    """The JobSet: a Job per slice, a pod per host; exit codes 1 and 2 end it, others restart it."""
    hosts = math.ceil(math.prod(read_topology(args.topology)) / args.chips)
    selector = {
        "cloud.google.com/gke-tpu-accelerator": args.accelerator,
        "cloud.google.com/gke-tpu-topology": args.topology,
    } | ({"cloud.google.com/gke-spot": "true"} if args.spot else {})
    container = {
        "name": "train",
        "image": image,
        "args": list(job.train),
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
    final = {"containerName": "train", "operator": "In", "values": FINAL}
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


def read_topology(text: str) -> list[int]:
    sides = text.split("x")
    if not all(side.isdecimal() and int(side) for side in sides):
        raise errors.UsageError(f"--topology={text} must read like 4x4 or 2x2x2.")
    return [int(side) for side in sides]


if __name__ == "__main__":
    cli.start(__doc__, define, main)
