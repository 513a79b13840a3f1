"""The files for Ray's cluster launcher, read the way `ray up` reads them.

Their commands run in a shell in which `ray` and `sudo` only note how they are called.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config, with_head_node_ip

ROOT = Path(__file__).resolve().parents[2]
HEAD = "192.0.2.10"
LAUNCHED = ("ray_cluster.yaml", "deploy/aws.yaml", "deploy/gcp.yaml")
CLOUDS = LAUNCHED[1:]
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")

NOTE = """#!/bin/sh
env > "$HOME/called.$$.env"
printf '%s\\n' "$@" > "$HOME/called.$$.arguments"
"""
VENV = f"""#!/bin/sh
mkdir -p "$3/bin"
printf '%s' {shlex.quote(NOTE)} > "$3/bin/python"
cp "$3/bin/python" "$3/bin/pip"
chmod +x "$3/bin/python" "$3/bin/pip"
"""


def load(file: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / file).read_text("utf-8"))
    return loaded


@pytest.fixture(scope="module", params=LAUNCHED)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return load(request.param)


@pytest.fixture(scope="module")
def own() -> dict[str, Any]:
    return load("ray_cluster.yaml")


@pytest.fixture(scope="module", params=CLOUDS)
def cloud(request: pytest.FixtureRequest) -> dict[str, Any]:
    return load(request.param)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder as the file mounts leave it, with the `ray` of the project's environment."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    (tmp_path / ".ray" / "auth_token").chmod(0o644)
    for name, content in ((".local/python3", VENV), (".local/sudo", NOTE), ("llm-nas/.venv/bin/ray", NOTE)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def run(commands: list[str], home: Path) -> list[tuple[list[str], dict[str, str]]]:
    """Arguments and environment of each program that the commands start in `home`."""
    environment = {"HOME": str(home), "PATH": f"{home}/.local:/usr/bin:/bin"}
    for command in with_head_node_ip(commands, HEAD):
        subprocess.run(["bash", "-c", command], env=environment, check=True, timeout=60)
    return [
        (file.read_text().splitlines(), dict(line.partition("=")[::2] for line in _lines(file.with_suffix(".env"))))
        for file in sorted(home.glob("called.*.arguments"), key=lambda file: file.stat().st_mtime_ns)
    ]


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def test_matches_the_schema_that_ray_ships(config: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "head_command": "ray start"}, schema)


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    prepared = prepare_config(config)
    validate_config(prepared)
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**prepared, "max_workers": "two"})


def test_every_worker_address_joins(own: dict[str, Any]) -> None:
    prepared = prepare_config(own)
    count = len(own["provider"]["worker_ips"])
    (node,) = prepared["available_node_types"].values()
    assert (node["min_workers"], node["max_workers"], prepared["max_workers"]) == (count, count, count)


def test_addresses_are_placeholders(own: dict[str, Any]) -> None:
    addresses = [own["provider"]["head_ip"], *own["provider"]["worker_ips"]]
    assert len(set(addresses)) == len(addresses)
    assert all(ipaddress.ip_address(one) in ipaddress.ip_network("192.0.2.0/24") for one in addresses)


@pytest.mark.parametrize("which", STARTS)
def test_a_node_starts_with_token_and_shared_folder(config: dict[str, Any], which: str, home: Path) -> None:
    starts = [call for call in run(config[which], home) if call[0][0] == "start"]
    assert len(starts) == 1
    (arguments, environment), venv = starts[0], f"{home}/llm-nas/.venv/bin"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert os.path.isabs(environment["NAS_OUTPUT"])
    assert environment["PATH"].startswith(f"{venv}:")
    assert ("--head" in arguments) == (which == STARTS[0])


def test_all_nodes_get_the_same_environment(config: dict[str, Any], home: Path) -> None:
    calls = [call for which in STARTS for call in run(config[which], home)]
    set_here = [{name: value for name, value in environment.items() if name != "_"} for _, environment in calls]
    starts = [one for one, (arguments, _) in zip(set_here, calls, strict=True) if arguments[0] == "start"]
    assert all(one == starts[0] for one in starts)


def test_dashboard_listens_on_loopback_only(config: dict[str, Any], home: Path) -> None:
    (arguments,) = (call[0] for call in run(config[STARTS[0]], home) if "--head" in call[0])
    assert [one for one in arguments if one.startswith("--dashboard-host")] == ["--dashboard-host=127.0.0.1"]
    assert "--dashboard-port=8265" in arguments


def test_workers_join_the_head(config: dict[str, Any], home: Path) -> None:
    (head,) = (call[0] for call in run(config[STARTS[0]], home) if "--head" in call[0])
    (port,) = (one.partition("=")[2] for one in head if one.startswith("--port"))
    worker = run(config[STARTS[1]], home)[-1][0]
    assert worker == ["start", f"--address={HEAD}:{port}"]


def test_token_is_mounted_and_for_its_owner_only(config: dict[str, Any], home: Path) -> None:
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    run(config["setup_commands"], home)
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def test_mounts_hold_what_the_installation_needs(config: dict[str, Any]) -> None:
    mounted = {remote: local for remote, local in config["file_mounts"].items() if "/llm-nas/" in remote}
    assert all((ROOT / local).exists() and remote == f"~/llm-nas/{local}" for remote, local in mounted.items())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert set(mounted.values()) == packages | {"pyproject.toml", project["project"]["readme"]}


def test_all_files_start_ray_with_the_same_environment(cloud: dict[str, Any], own: dict[str, Any]) -> None:
    for which in STARTS:
        ours, theirs = (re.findall(r"([A-Z_]+)=(\S+)", one[which][1]) for one in (cloud, own))
        assert [(name, value.rstrip(";")) for name, value in ours] == [(one, two.rstrip(";")) for one, two in theirs]
    assert cloud["file_mounts"] == own["file_mounts"]


def test_head_of_a_cloud_runs_no_trial(cloud: dict[str, Any], home: Path) -> None:
    assert cloud["available_node_types"][cloud["head_node_type"]]["resources"] == {"CPU": 0}
    (head,) = (call[0] for call in run(cloud[STARTS[0]], home) if "--head" in call[0])
    assert "--num-cpus=0" in head


def test_gpu_machines_of_a_cloud_start_from_none(cloud: dict[str, Any]) -> None:
    prepared = prepare_config(cloud)
    workers = {
        name: one for name, one in prepared["available_node_types"].items() if name != prepared["head_node_type"]
    }
    assert workers
    for one in workers.values():
        assert one["min_workers"] == 0
        assert 0 < one["max_workers"] <= prepared["max_workers"]
        assert one["resources"]["GPU"] >= 1
    assert prepared["idle_timeout_minutes"] > 0


def test_setup_in_a_cloud_mounts_the_shared_folder(cloud: dict[str, Any], home: Path) -> None:
    calls = [arguments for arguments, _ in run(cloud["setup_commands"], home)]
    (mount,) = (one for one in calls if one[0] == "mount")
    assert mount[:3] == ["mount", "-t", "nfs4"]
    assert mount[-1] == "/mnt/nas"
    assert {"nosuid", "nodev", "hard", "nfsvers=4.1"} <= set(mount[4].split(","))
    assert f"NAS_OUTPUT={mount[-1]}/" in cloud[STARTS[0]][1]


def test_machines_of_a_cloud_have_no_public_address(cloud: dict[str, Any]) -> None:
    assert cloud["provider"]["use_internal_ips"] is True
    assert "ssh_proxy_command" in cloud["auth"]
    assert cloud["auth"]["ssh_proxy_use_node_id"] is True
    assert "accessConfigs" not in json.dumps(cloud)


def test_machines_at_aws_are_in_a_given_group() -> None:
    """Ray makes a security group that lets in ssh from everywhere for machines without one."""
    for one in load("deploy/aws.yaml")["available_node_types"].values():
        machine = one["node_config"]
        assert machine["SecurityGroupIds"]
        assert machine["SubnetIds"]
        assert "SubnetId" not in machine, "Ray reads SubnetIds and overwrites SubnetId"
        assert machine["IamInstanceProfile"]["Arn"], "Ray makes one with full access to EC2 and S3"
        assert machine["MetadataOptions"] == {"HttpTokens": "required"}
        assert all(disk["Ebs"]["Encrypted"] for disk in machine["BlockDeviceMappings"])


def test_machines_at_google_are_in_a_given_network() -> None:
    """Ray gives machines without `networkInterfaces` an external address in the first network that it finds."""
    for one in load("deploy/gcp.yaml")["available_node_types"].values():
        assert one["node_config"]["networkInterfaces"]
        assert one["node_config"]["tags"] == {"items": ["nas"]}


def test_setup_installs_into_the_environment_that_ray_runs_in(config: dict[str, Any], home: Path) -> None:
    calls = run(config["setup_commands"], home)
    assert calls[-1][0] == ["install", "--quiet", "--editable", f"{home}/llm-nas"]


SHIPPED = [*LAUNCHED, *(str(one.relative_to(ROOT)) for one in (ROOT / "deploy").rglob("*.yaml"))]


@pytest.mark.parametrize("file", sorted(set(SHIPPED)))
def test_no_file_opens_a_port_to_everybody_or_turns_the_token_off(file: str) -> None:
    text = (ROOT / file).read_text("utf-8")
    assert "0.0.0.0" not in text
    assert not re.search(r"auth_mode\W+disabled|mode:\s*disabled", text, re.IGNORECASE)
