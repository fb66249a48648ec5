"""The files of k8s/, by KubeRay's fields (:mod:`tests.kuberay`), Kubernetes' schemas and Ray's own reading of them.

Not seen here: a Kubernetes. ``kubectl apply --dry-run=server -f k8s/rayjob.yaml`` asks yours.
"""

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.kuberay import RAY_JOB

pytestmark = pytest.mark.cluster

FOLDER = Path(__file__).parents[1] / "k8s"
LOCK = (FOLDER.parent / "requirements.lock").read_text(encoding="utf-8")
Json = dict[str, Any]


def load(name: str) -> Json:
    content: Json = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    return content


def merged(base: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7396), which is how kustomize patches kinds that it does not know."""
    if not isinstance(base, dict) or not isinstance(patch, dict):
        return patch
    return {**base, **{key: merged(base.get(key), value) for key, value in patch.items()}}


def job(name: str) -> Json:
    """The job alone, or with what kustomization.yaml lays over it."""
    content = load("rayjob.yaml")
    for patch in load("kustomization.yaml")["patches"] if name == "kustomization.yaml" else []:
        content = merged(content, load(patch["path"]))
    return content


WAYS = ["rayjob.yaml", "kustomization.yaml"]


def pods(content: Json) -> dict[str, Json]:
    """Pod template by group of nodes."""
    cluster = content["spec"]["rayClusterSpec"]
    head = {"head": cluster["headGroupSpec"]["template"]}
    return head | {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}


def check(content: Json) -> None:
    jsonschema.validate(content, RAY_JOB)
    for name, pod in pods(content).items():
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}, "template": pod}
        kubernetes_validate.validate(template, "1.37", strict=True)


@pytest.mark.parametrize("way", WAYS)
def test_a_job_has_the_fields_that_kuberay_and_kubernetes_know_in_their_types(way: str) -> None:
    check(job(way))


DAMAGES: list[tuple[str, Any]] = [
    ("spec.entryPoint", "python x.py"),
    ("spec.backoffLimit", "3"),
    ("spec.rayClusterSpec.authOptions.mode", "password"),
    ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),
    ("spec.rayClusterSpec.headGroupSpec.template.spec.serviceAccount_name", "x"),
    ("spec.rayClusterSpec.headGroupSpec.template.spec.restartPolicy", 1),
]


@pytest.mark.parametrize(("path", "value"), DAMAGES)
def test_a_misspelt_field_and_a_value_of_another_type_are_found(path: str, value: Any) -> None:
    content = copy.deepcopy(job("rayjob.yaml"))
    *parents, last = path.split(".")
    place = content
    for key in parents:
        place = place[key]
    place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        check(content)


def node_types(content: Json) -> Json:
    """What Ray's autoscaler, which runs beside the head, reads from the cluster of the job."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    metadata = {"name": "mammoray", "namespace": "default"}
    types: Json = _derive_autoscaling_config_from_ray_cr(
        {"metadata": metadata, "spec": content["spec"]["rayClusterSpec"]}
    )["available_node_types"]
    return types


@pytest.mark.parametrize("way", WAYS)
def test_rays_autoscaler_reads_a_head_without_work_gpu_nodes_from_the_start_and_cpu_nodes_on_demand(way: str) -> None:
    types = node_types(job(way))
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["gpu"]["resources"]["GPU"] == 1 and types["gpu"]["min_workers"] >= 1
    assert "GPU" not in types["cpu"]["resources"]
    assert types["cpu"]["min_workers"] == 0 < types["cpu"]["max_workers"]


def test_the_cluster_has_the_ray_of_the_lock() -> None:
    locked = re.search(r"^ray==(\S+)", LOCK, re.MULTILINE)
    assert locked and job("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == locked[1]


def test_the_job_waits_for_as_many_gpus_as_it_has_workers_and_is_no_training_on_cpus() -> None:
    content = job("rayjob.yaml")
    words = content["spec"]["entrypoint"].split()
    [gpu] = [group for group in content["spec"]["rayClusterSpec"]["workerGroupSpecs"] if group["groupName"] == "gpu"]
    assert gpu["minReplicas"] >= int(words[words.index("--num-workers") + 1])
    assert words[words.index("--gpu") + 1] == "yes"
    script = Path(words[1])
    assert (FOLDER.parent / "jobs" / script.name).is_file()
    assert str(script.parent.parent) == "/home/ray/mammoray"  # WORKDIR of the Dockerfile.


@pytest.mark.parametrize("way", WAYS)
def test_a_job_that_ends_or_fails_gives_its_nodes_back(way: str) -> None:
    spec = job(way)["spec"]
    assert spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] <= 3600
    assert spec["activeDeadlineSeconds"] > 0 and spec["backoffLimit"] > 0


@pytest.mark.parametrize("way", WAYS)
def test_the_dashboard_is_not_reachable_from_outside_and_every_call_needs_a_token(way: str) -> None:
    cluster = job(way)["spec"]["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not any(pod["spec"].get("hostNetwork") for pod in pods(job(way)).values())


@pytest.mark.parametrize("way", WAYS)
def test_no_pod_is_roots_and_none_carries_a_secret_in_the_open(way: str) -> None:
    for pod in pods(job(way)).values():
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert not [one for one in container.get("env", []) if "value" in one]
    text = "".join((FOLDER / name).read_text(encoding="utf-8") for name in ("rayjob.yaml", "fault-tolerant-head.yaml"))
    assert not re.search(r"(?i)(secret_?access|passw\w*: *\S|AKIA)", text.replace("redisPassword:", ""))


def test_the_head_that_outlives_itself_takes_its_redis_password_from_a_secret_and_the_driver_from_its_node() -> None:
    content = job("kustomization.yaml")
    options = content["spec"]["rayClusterSpec"]["gcsFaultToleranceOptions"]
    assert set(options["redisPassword"]["valueFrom"]["secretKeyRef"]) == {"name", "key"}
    assert content["spec"]["entrypointNumCpus"] == 1
    assert content["spec"]["entrypoint"] == job("rayjob.yaml")["spec"]["entrypoint"]


def test_workers_have_a_memory_of_their_own_for_the_object_store() -> None:
    for name, pod in pods(job("rayjob.yaml")).items():
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        mounts = [mount["name"] for mount in pod["spec"]["containers"][0].get("volumeMounts", [])]
        assert name == "head" or volumes[mounts[0]]["emptyDir"]["medium"] == "Memory"
