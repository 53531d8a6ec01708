"""The parts of KubeRay's ray.io/v1 resources that our manifests use, as a strict schema: an unknown key is a mistake.

Written by hand after the API reference of KubeRay 1.6.2. Wider than what we use only where a field is likely next.
"""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
YES_NO: Schema = {"type": "boolean"}
NAME: Schema = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
PATH: Schema = {"type": "string", "pattern": "^/"}
CPU: Schema = {"type": "string", "pattern": r"^([1-9][0-9]*|[1-9][0-9]*m)$"}
MEMORY: Schema = {"type": "string", "pattern": r"^[1-9][0-9]*(Mi|Gi)$"}


def strict(required: str = "", /, **properties: Schema) -> Schema:
    """Return the schema of an object with these keys and no others; `required` names keys, with spaces between."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def many(items: Schema, at_least: int = 1) -> Schema:
    return {"type": "array", "items": items, "minItems": at_least}


def text_map(values: Schema = TEXT) -> Schema:
    return {"type": "object", "additionalProperties": values}


AMOUNTS = strict("cpu memory", cpu=CPU, memory=MEMORY, **{"nvidia.com/gpu": {"type": "string", "pattern": "^[1-9]$"}})
TOLERATION = strict(
    "key operator effect",
    key=TEXT,
    operator={"const": "Exists"},
    effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
)
POD_SECURITY = strict(
    "runAsNonRoot runAsUser fsGroup seccompProfile",
    runAsNonRoot={"const": True},
    runAsUser={"type": "integer", "minimum": 1},
    runAsGroup={"type": "integer", "minimum": 1},
    fsGroup={"type": "integer", "minimum": 1},
    seccompProfile=strict("type", type={"enum": ["RuntimeDefault", "Localhost"]}),
)
CONTAINER_SECURITY = strict(
    "allowPrivilegeEscalation capabilities",
    allowPrivilegeEscalation={"const": False},
    capabilities=strict("drop", drop={"const": ["ALL"]}),
    readOnlyRootFilesystem=YES_NO,
)
ENV = strict("name value", name={"type": "string", "pattern": "^[A-Z][A-Z0-9_]*$"}, value=TEXT)
ENV_FROM = {
    "oneOf": [
        strict("configMapRef", configMapRef=strict("name", name=NAME, optional=YES_NO)),
        strict("secretRef", secretRef=strict("name", name=NAME, optional=YES_NO)),
    ]
}
CONTAINER = strict(
    "name image resources securityContext volumeMounts",
    name=NAME,
    image={"type": "string", "pattern": r"^[^:]+:(?!latest$)[\w.-]+$"},
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    securityContext=CONTAINER_SECURITY,
    ports=many(
        strict("containerPort name", containerPort={"type": "integer", "minimum": 1, "maximum": 65535}, name=NAME)
    ),
    env=many(ENV),
    envFrom=many(ENV_FROM),
    resources=strict("requests limits", requests=AMOUNTS, limits=AMOUNTS),
    volumeMounts=many(strict("name mountPath", name=NAME, mountPath=PATH, readOnly=YES_NO)),
)
CLAIM = strict("name persistentVolumeClaim", name=NAME, persistentVolumeClaim=strict("claimName", claimName=NAME))
POD = strict(
    "securityContext containers volumes",
    automountServiceAccountToken=YES_NO,
    securityContext=POD_SECURITY,
    tolerations=many(TOLERATION),
    containers={**many(CONTAINER), "maxItems": 1},
    volumes=many(
        strict("name persistentVolumeClaim", name=NAME, persistentVolumeClaim=strict("claimName", claimName=NAME))
    ),
)
TEMPLATE = strict("spec", metadata=strict("", labels=text_map()), spec=POD)
HEAD_GROUP = strict(
    "rayStartParams template",
    serviceType={"const": "ClusterIP"},
    rayStartParams=text_map({"type": "string"}),
    template=TEMPLATE,
)
WORKER_GROUP = strict(
    "groupName replicas minReplicas maxReplicas rayStartParams template",
    groupName=NAME,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=text_map({"type": "string"}),
    template=TEMPLATE,
)
CLUSTER_SPEC = strict(
    "rayVersion authOptions headGroupSpec workerGroupSpecs",
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=strict("mode", mode={"const": "token"}, secretName=NAME),
    headGroupSpec=HEAD_GROUP,
    workerGroupSpecs=many(WORKER_GROUP),
)
METADATA = strict("name", name=NAME, labels=text_map())


def resource(kind: str, spec: Schema) -> Schema:
    return strict(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=METADATA,
        spec=spec,
    )


SCHEMAS: dict[str, Schema] = {
    "RayCluster": resource("RayCluster", CLUSTER_SPEC),
    "RayJob": resource(
        "RayJob",
        strict(
            "entrypoint rayClusterSpec shutdownAfterJobFinishes",
            entrypoint=TEXT,
            submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
            backoffLimit=COUNT,
            activeDeadlineSeconds={"type": "integer", "minimum": 1},
            shutdownAfterJobFinishes=YES_NO,
            ttlSecondsAfterFinished=COUNT,
            runtimeEnvYAML=TEXT,
            rayClusterSpec=CLUSTER_SPEC,
        ),
    ),
}
