"""`deploy/aws.yaml`, taken by Ray's launcher to an AWS that moto plays: what it makes there, and what it does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config

FILE = Path(__file__).resolve().parents[2] / "deploy" / "aws.yaml"
REGION = "eu-central-1"


@dataclass
class Account:
    """What the head of the file asks for: a subnet, a security group, a key, an image and two instance profiles."""

    ec2: Any
    iam: Any
    subnet: str
    group: str
    image: str

    def config(self, folder: Path) -> dict[str, Any]:
        """The file with the names of this account, as Ray sees it."""
        (folder / "key.pem").write_text("key")
        found = yaml.safe_load(FILE.read_text("utf-8"))
        found["auth"]["ssh_private_key"] = str(folder / "key.pem")
        for one in found["available_node_types"].values():
            one["node_config"] |= {"SubnetIds": [self.subnet], "SecurityGroupIds": [self.group], "ImageId": self.image}
        prepared: dict[str, Any] = bootstrap_aws(prepare_config(found))
        return prepared


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "played")
    with mock_aws():
        ec2, iam = boto3.resource("ec2", REGION), boto3.client("iam")
        network = ec2.create_vpc(CidrBlock="10.0.0.0/16")
        subnet = network.create_subnet(CidrBlock="10.0.0.0/24", AvailabilityZone=f"{REGION}a")
        group = ec2.create_security_group(GroupName="nas", Description="nas", VpcId=network.id)
        ec2.create_key_pair(KeyName="nas")
        for name in ("nas-head", "nas-worker"):
            iam.create_instance_profile(InstanceProfileName=name)
        image = next(iter(ec2.images.all())).id
        yield Account(ec2, iam, subnet.id, group.id, image)


def test_ray_makes_no_group_and_no_role_of_its_own(account: Account, tmp_path: Path) -> None:
    groups = {one.id for one in account.ec2.security_groups.all()}
    prepared = account.config(tmp_path)
    assert {one.id for one in account.ec2.security_groups.all()} == groups
    assert not account.iam.list_roles()["Roles"]
    assert len(account.iam.list_instance_profiles()["InstanceProfiles"]) == 2
    for one in prepared["available_node_types"].values():
        assert one["node_config"]["SubnetIds"] == [account.subnet]
        assert one["node_config"]["SecurityGroupIds"] == [account.group]


def test_gpu_machine_is_private_and_in_the_given_group(account: Account, tmp_path: Path) -> None:
    prepared = account.config(tmp_path)
    machine = dict(prepared["available_node_types"]["gpu"]["node_config"])
    AWSNodeProvider(prepared["provider"], "nas").create_node(machine, {"ray-node-name": "worker"}, 1)
    (made,) = account.ec2.instances.all()
    assert made.instance_type == "g6.2xlarge"
    assert made.public_ip_address is None
    assert [one["GroupId"] for one in made.security_groups] == [account.group]
    assert made.subnet_id == account.subnet
    assert made.iam_instance_profile["Arn"].endswith("/nas-worker")
