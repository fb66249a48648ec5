"""What of KubeRay's RayJob the files of k8s/ use, as a JSON Schema: names, types, allowed values and what is required.

No package carries KubeRay's own schema, so it stands here as facts of its API reference (group ray.io/v1, KubeRay 1.7):
RayJobSpec, RayClusterSpec, AuthOptions, AutoscalerOptions, GcsFaultToleranceOptions, HeadGroupSpec, WorkerGroupSpec,
RedisCredential. A field that is missing here may exist there. Pods are held against Kubernetes' own schemas instead.

References
----------
https://ray-project.github.io/kuberay/reference/api/
"""

from typing import Any

Json = dict[str, Any]

TEXT = {"type": "string"}
FLAG = {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
POD = {"type": "object", "required": ["spec"]}


def one_of(*values: str) -> Json:
    return {"type": "string", "enum": list(values)}


def fields(required: str = "", **properties: Any) -> Json:
    """An object of these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


TEXTS = {"type": "object", "additionalProperties": TEXT}
SECRET_KEY = fields("key", name=TEXT, key=TEXT, optional=FLAG)
RESOURCES = fields(requests={"type": "object"}, limits={"type": "object"})

RAY_CLUSTER_SPEC = fields(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=fields(mode=one_of("disabled", "token")),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=fields(
        version=one_of("v1", "v2"),
        upscalingMode=one_of("Default", "Aggressive", "Conservative"),
        idleTimeoutSeconds=COUNT,
        resources=RESOURCES,
    ),
    gcsFaultToleranceOptions=fields(
        redisAddress=TEXT,
        redisPassword=fields(valueFrom=fields(secretKeyRef=SECRET_KEY)),
    ),
    headGroupSpec=fields("template", serviceType=TEXT, rayStartParams=TEXTS, template=POD),
    workerGroupSpecs={
        "type": "array",
        "items": fields(
            "groupName maxReplicas minReplicas template",
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            idleTimeoutSeconds=COUNT,
            rayStartParams=TEXTS,
            template=POD,
        ),
    },
)

RAY_JOB = fields(
    "apiVersion kind metadata spec",
    apiVersion=one_of("ray.io/v1"),
    kind=one_of("RayJob"),
    metadata=fields("name", name=TEXT, namespace=TEXT, labels=TEXTS),
    spec=fields(
        "",
        entrypoint=TEXT,
        entrypointNumCpus={"type": "number"},
        submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
        backoffLimit=COUNT,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        activeDeadlineSeconds=COUNT,
        runtimeEnvYAML=TEXT,
        rayClusterSpec=RAY_CLUSTER_SPEC,
    ),
)
