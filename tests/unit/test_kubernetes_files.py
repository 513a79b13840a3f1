"""The files for Kubernetes: known fields only, a token, no port for others, no more rights than needed."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kuberay"
VERSION = "1.34"  # of Kubernetes

# Fields of KubeRay's custom resources, version ray.io/v1, as of KubeRay 1.5.1. Pod templates are Kubernetes' own.
FIELDS = {
    "RayJob": {
        "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint",
        "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata",
        "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig",
        "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
    },
    "RayCluster": {
        "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
        "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "workerGroupSpecs",
    },
    "autoscalerOptions": {
        "env", "envFrom", "idleTimeoutSeconds", "image", "imagePullPolicy", "resources", "securityContext",
        "upscalingMode", "version", "volumeMounts",
    },
    "headGroupSpec": {
        "enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template",
    },
    "workerGroupSpecs": {
        "groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams",
        "replicas", "resources", "scaleStrategy", "suspend", "template",
    },
    "authOptions": {"mode"},
}  # fmt: skip


def documents(file: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / file).read_text("utf-8")))


def of_kind(file: str, kind: str) -> dict[str, Any]:
    (found,) = (one for one in documents(file) if one["kind"] == kind)
    return found


def cluster_of(file: str) -> dict[str, Any]:
    resource = documents(file)[0]
    spec: dict[str, Any] = resource["spec"]
    return spec["rayClusterSpec"] if resource["kind"] == "RayJob" else spec


def templates(file: str) -> Iterator[dict[str, Any]]:
    """All pod templates of a file: those of the head, of the workers, and of the pod that submits the job."""
    cluster, spec = cluster_of(file), documents(file)[0]["spec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    yield from (one["template"] for one in groups)
    if "submitterPodTemplate" in spec:
        yield spec["submitterPodTemplate"]


def containers(file: str) -> Iterator[dict[str, Any]]:
    yield from (one for template in templates(file) for one in template["spec"]["containers"])


CLUSTERS = pytest.mark.parametrize("file", ["raycluster.yaml", "rayjob.yaml"])


@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.iterdir()))
def test_objects_of_kubernetes_itself_are_valid(file: str) -> None:
    own = [one for one in documents(file) if not one["apiVersion"].startswith("ray.io/")]
    assert own
    for one in own:
        kubernetes_validate.validate(one, VERSION, strict=True)


@CLUSTERS
def test_pods_are_valid(file: str) -> None:
    for template in templates(file):
        metadata = {"name": "pod", **template["metadata"]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        kubernetes_validate.validate(pod, VERSION, strict=True)
        wrong = {**pod, "spec": {**template["spec"], "container": []}}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, VERSION, strict=True)


@CLUSTERS
def test_fields_are_those_of_kuberay(file: str) -> None:
    resource, cluster = documents(file)[0], cluster_of(file)
    assert resource["apiVersion"] == "ray.io/v1"
    assert set(resource["spec"]) <= FIELDS[resource["kind"]]
    assert set(cluster) <= FIELDS["RayCluster"]
    for name in ("authOptions", "autoscalerOptions", "headGroupSpec"):
        assert set(cluster[name]) <= FIELDS[name]
    assert all(set(group) <= FIELDS["workerGroupSpecs"] for group in cluster["workerGroupSpecs"])
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert all(isinstance(value, str) for group in groups for value in group["rayStartParams"].values())


@CLUSTERS
def test_cluster_asks_for_a_token(file: str) -> None:
    assert cluster_of(file)["authOptions"] == {"mode": "token"}
    names = {one["name"] for container in containers(file) for one in container.get("env", ())}
    assert not names & {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}, "KubeRay sets them"


@CLUSTERS
def test_ray_is_a_version_that_the_project_installs_with(file: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (wanted,) = (one for one in map(Requirement, project["dependencies"]) if one.name == "ray")
    assert cluster_of(file)["rayVersion"] in wanted.specifier


def test_dashboard_of_a_cluster_is_on_loopback() -> None:
    assert cluster_of("raycluster.yaml")["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "127.0.0.1"


@CLUSTERS
def test_no_port_is_open_to_others(file: str) -> None:
    policy = of_kind(file, "NetworkPolicy")["spec"]
    labels = policy["podSelector"]["matchLabels"]
    assert policy["policyTypes"] == ["Ingress"]
    assert all(labels.items() <= template["metadata"]["labels"].items() for template in templates(file))
    within, *others = policy["ingress"]
    assert within == {"from": [{"podSelector": {"matchLabels": labels}}]}
    for one in others:
        assert [port["port"] for port in one["ports"]] == [8265]
        (peer,) = one["from"]
        assert peer["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}
    assert len(others) == (1 if file == "rayjob.yaml" else 0)
    head = cluster_of(file)["headGroupSpec"]
    assert not {"serviceType", "headService", "enableIngress"} & set(head)
    assert not any("hostPort" in port for container in containers(file) for port in container.get("ports", ()))


@CLUSTERS
def test_head_runs_no_trial_and_gpu_pods_start_from_none(file: str) -> None:
    cluster = cluster_of(file)
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    for group in cluster["workerGroupSpecs"]:
        assert (group["replicas"], group["minReplicas"]) == (0, 0)
        assert group["maxReplicas"] > 0
        (worker,) = group["template"]["spec"]["containers"]
        assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"


@CLUSTERS
def test_all_pods_of_a_cluster_share_one_claim(file: str) -> None:
    claim = of_kind("storage.yaml", "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    groups = [cluster_of(file)["headGroupSpec"], *cluster_of(file)["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        names = [one["persistentVolumeClaim"]["claimName"] for one in pod["volumes"] if "persistentVolumeClaim" in one]
        assert names == [claim["metadata"]["name"]]
        (container,) = pod["containers"]
        (mounted,) = (one["mountPath"] for one in container["volumeMounts"] if one["name"] == "shared")
        environment = {one["name"]: one["value"] for one in container["env"]}
        assert all(environment[name].startswith(f"{mounted}/") for name in ("NAS_OUTPUT", "HF_HOME"))


@CLUSTERS
def test_pods_have_no_more_rights_than_they_need(file: str) -> None:
    for template in templates(file):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not any("hostPath" in volume for volume in pod.get("volumes", ()))
    contexts = [one["securityContext"] for one in containers(file)]
    for one in [*contexts, cluster_of(file)["autoscalerOptions"]["securityContext"]]:
        assert one == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for group in cluster_of(file)["workerGroupSpecs"]:
        assert group["template"]["spec"]["automountServiceAccountToken"] is False


@CLUSTERS
def test_every_container_says_what_it_needs(file: str) -> None:
    autoscaler = cluster_of(file)["autoscalerOptions"]
    for one in [autoscaler, *containers(file)]:
        assert {"cpu", "memory"} <= set(one["resources"]["requests"])
        assert {"cpu", "memory"} <= set(one["resources"]["limits"])
