"""The files that deploy mammoray, by what reads them: Ray's launcher and autoscaler, Ray's packaging, a loopback AWS.

Not seen here: a real cloud, and Docker. Of cluster-gcp.yaml the names inside of ``node_config`` are Google's affair.
"""

import contextlib
import logging
import re
import shutil
import socket
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[1]
LAUNCHERS = ["cluster.yaml", "cluster-gcp.yaml"]
Json = dict[str, Any]


def locked(package: str) -> str:
    """The version of a package in requirements.lock."""
    found = re.search(rf"^{package}==([\w.]+)", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def load(name: str) -> Json:
    content: Json = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return content


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("it wants a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def prepared(name: str) -> Json:
    """The file as "ray up" completes and checks it before it asks a cloud for anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: Json = prepare_config(load(name))
    validate_config(config)
    return config


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_cluster_file_is_valid_for_ray_without_a_network(name: str, no_network: None) -> None:
    config = prepared(name)
    assert config["head_node_type"] in config["available_node_types"]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_misspelt_key_of_a_cluster_file_is_found(name: str) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = load(name)
    config["available_node_types"]["gpu_spot"]["min_worker"] = 1
    with pytest.raises(ValidationError, match="min_worker"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_container_has_the_ray_of_the_lock_and_its_packages_come_from_the_lock(name: str) -> None:
    config = prepared(name)
    assert re.fullmatch(rf"rayproject/ray:{re.escape(locked('ray'))}-py31[0-3]-gpu", config["docker"]["image"])
    lock = next(remote for remote, local in config["file_mounts"].items() if local == "requirements.lock")
    for kind in ("head_setup_commands", "worker_setup_commands"):
        assert any(f"pip install --quiet --disable-pip-version-check -r {lock}" in word for word in config[kind])
    for local in config["file_mounts"].values():
        assert local.startswith("~/.ray/") or (ROOT / local).is_file()


@pytest.mark.parametrize("name", LAUNCHERS)
def test_dashboard_and_job_server_stay_on_loopback_and_every_call_needs_a_token(name: str) -> None:
    config = prepared(name)
    starts = [word for word in config["head_start_ray_commands"] if "ray start" in word]
    assert len(starts) == 1 and "--dashboard-host=127.0.0.1" in starts[0]
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("name", LAUNCHERS)
def test_decoding_has_nodes_without_gpus_and_training_has_gpus_from_the_start(name: str) -> None:
    config = load(name)
    types = config["available_node_types"]
    gpus = {kind for kind, node in types.items() if node["resources"].get("GPU")}
    workers = set(types) - {config["head_node_type"]}
    assert gpus and workers - gpus
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
    assert sum(types[kind]["min_workers"] for kind in gpus) >= 1
    assert 0 < config["idle_timeout_minutes"] <= 15


PLACEHOLDERS = (
    r"ami-0{17}|:0{12}:|my-project|example\.org|region:|availability_zone:|images/family|owner|docker.*image:"
)


@pytest.mark.parametrize("name", [*LAUNCHERS, "k8s/rayjob.yaml"])
def test_every_line_that_a_user_has_to_set_is_marked(name: str) -> None:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if re.search(PLACEHOLDERS, line) and not line.lstrip().startswith("#")]
    assert len(wanted) >= 3 or name.startswith("k8s")
    assert [line for line in wanted if "CHANGE" not in line] == []


def wanted_nodes(name: str, bundle: dict[str, float], count: int, failed: tuple[str, ...] = ()) -> dict[str, int]:
    """What Ray's autoscaler launches for a demand, where the last launch of some types timed out."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount

    config = AutoscalingConfig(load(name), skip_content_hash=True)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=[ResourceRequestByCount(request=ResourceRequestUtil.make(bundle), count=count)],
        recoverable_resource_availabilities=dict.fromkeys(failed, 0.0),
    )
    reply = ResourceDemandScheduler(None).schedule(request)
    return {launch.instance_type: launch.count for launch in reply.to_launch}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_autoscaler_takes_spot_nodes_first_and_nodes_on_demand_where_spot_nodes_did_not_come_up(name: str) -> None:
    assert wanted_nodes(name, {"GPU": 1}, 4) == {"gpu_on_demand": 1, "gpu_spot": 3}  # The first of them is the floor.
    assert wanted_nodes(name, {"GPU": 1}, 4, failed=("gpu_spot",)) == {"gpu_on_demand": 4}
    decoding = wanted_nodes(name, {"CPU": 1}, 100)
    assert decoding == {"gpu_on_demand": 1, "cpu_spot": 3}
    assert wanted_nodes(name, {"CPU": 1}, 100, failed=("cpu_spot",)) == {"gpu_on_demand": 1, "cpu_on_demand": 3}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_no_demand_leads_to_more_nodes_than_the_lid_on_the_bill(name: str) -> None:
    head = 1  # Ray's own limit counts the head, which is not there in this demand.
    assert sum(wanted_nodes(name, {"CPU": 1}, 1000).values()) == load(name)["max_workers"] + head


def test_a_refused_launch_does_not_make_ray_fall_back_which_is_why_there_is_a_floor() -> None:
    """Where a later Ray counts refusals too, cluster.yaml and docs/cluster.md should say so."""
    from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
    from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

    monitor = CloudResourceMonitor()
    standing = monitor.get_recoverable_resource_availabilities
    monitor.notify([InstanceUpdateEvent(instance_type="x", new_instance_status=Instance.ALLOCATION_FAILED)])
    assert standing() == {}
    monitor.notify([InstanceUpdateEvent(instance_type="x", new_instance_status=Instance.ALLOCATION_TIMEOUT)])
    assert standing() == {"x": 0.0}


@dataclass(frozen=True)
class Launched:
    """What stands in an AWS after Ray launched one node of each type."""

    nodes: dict[str, Json]
    groups: list[Json]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """One instance of each node type of cluster.yaml, launched by Ray's own code in an AWS of this process."""
    import boto3
    from moto import mock_aws

    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as after:
        mock = mock_aws()
        # The S3 server of other tests has its buckets in this process, too: they must stay.
        mock.start(reset=False)
        after.callback(mock.stop, remove_data=False)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # Ray writes the key pair there.
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "none")
        for name in ("mammoray-head", "mammoray-worker"):
            boto3.client("iam", region_name="us-east-1").create_instance_profile(InstanceProfileName=name)
        ec2 = boto3.client("ec2", region_name=load("cluster.yaml")["provider"]["region"])
        launch(ec2.describe_images()["Images"][0]["ImageId"])
        found = [one for many in ec2.describe_instances()["Reservations"] for one in many["Instances"]]
        groups = sorted({group["GroupId"] for node in found for group in node["SecurityGroups"]})
        yield Launched(
            {tags(node)["ray-user-node-type"]: node for node in found},
            ec2.describe_security_groups(GroupIds=groups)["SecurityGroups"],
        )


def launch(image: str) -> None:
    from moto.core import DEFAULT_ACCOUNT_ID
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    config = prepared("cluster.yaml")
    for node in config["available_node_types"].values():
        profile = node["node_config"]["IamInstanceProfile"]["Arn"].replace("0" * 12, DEFAULT_ACCOUNT_ID)
        node["node_config"] |= {"ImageId": image, "IamInstanceProfile": {"Arn": profile}}
    config = bootstrap_aws(config)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for kind, node in config["available_node_types"].items():
        provider.create_node(node["node_config"], {"ray-user-node-type": kind}, 1)


def tags(instance: Json) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in instance["Tags"]}


def test_ray_launches_every_node_type_on_aws_with_its_market_profile_and_tags(launched: Launched) -> None:
    nodes = launched.nodes
    assert set(nodes) == set(load("cluster.yaml")["available_node_types"])
    assert {kind for kind, node in nodes.items() if node.get("InstanceLifecycle") == "spot"} == {"gpu_spot", "cpu_spot"}
    for kind, node in nodes.items():
        assert node["IamInstanceProfile"]["Arn"].endswith("mammoray-head" if kind == "head" else "mammoray-worker")
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert tags(node)["project"] == "mammoray" and tags(node)["owner"]


def test_from_outside_an_aws_cluster_only_ssh_is_open(launched: Launched) -> None:
    rules = [rule for group in launched.groups for rule in group["IpPermissions"]]
    outside = [rule for rule in rules if rule["IpRanges"] or rule["Ipv6Ranges"]]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in outside] == [(22, 22)]


def instructions() -> list[tuple[str, str]]:
    """Instruction and arguments of each line of the Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def test_the_image_is_of_a_pinned_base_and_of_the_lock_resolves_nothing_and_is_not_roots() -> None:
    words = instructions()
    [base] = [rest for word, rest in words if word == "FROM"]
    assert re.fullmatch(r"python:3\.1[0-3]\.\d+-[\w-]+", base)
    installs = [rest for word, rest in words if word == "RUN" and "pip install" in rest]
    assert "-r requirements.lock" in installs[0]
    assert all("--no-deps" in rest for rest in installs)
    users = [rest for word, rest in words if word == "USER"]
    assert users and re.fullmatch(r"[1-9]\d*:\d+", users[-1])


def test_the_image_has_all_that_the_dockerfile_copies_and_no_secret() -> None:
    words = instructions()
    copied = [rest.split()[:-1] for word, rest in words if word == "COPY"]
    assert all((ROOT / name).exists() for names in copied for name in names)
    assert "ADD" not in {word for word, _ in words}
    settings = " ".join(rest for word, rest in words if word in ("ENV", "ARG"))
    assert not re.search("token|secret|passw|credential|key", settings, re.IGNORECASE)


def test_the_builder_gets_what_is_copied_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    copied = {name for word, rest in instructions() if word == "COPY" for name in rest.split()[:-1]}
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files of the repository, with what lies about in a folder where somebody works."""
    folder = tmp_path / "mammoray"
    folder.mkdir()
    for name in ("mammoray", "jobs", "docs", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "requirements.lock", ".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "my.toml").write_text("seed = 1\n", encoding="utf-8")
    for name in LITTER:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"0" * 300_000)
    return folder


LITTER = [
    ".venv/lib/python3.11/site-packages/torch/big.so", "env/lib/big.so", ".git/objects/pack/one.pack",
    "mammoray-cache/0123/shard.arrow", "demo/data/train_images/1/2.dcm", "runs/first/best/model.safetensors",
    "train.csv", "image.dcm", "mammoray/left.dcm", "jobs/cases.csv", "jobs/key.pem", ".env", "jobs/.env", "core.1234",
    "mammoray/__pycache__/cli.cpython-311.pyc", "study.journal",
]  # fmt: skip


def uploaded(folder: Path) -> zipfile.ZipFile:
    """What ``ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml`` uploads, by Ray's own packaging."""
    from ray._private.runtime_env.packaging import create_package

    package = folder.parent / "package.zip"
    excludes = yaml.safe_load((folder / "jobs" / "runtime_env.yaml").read_text(encoding="utf-8"))["excludes"]
    quiet = logging.getLogger("quiet")
    create_package(str(folder), package, include_gitignore=True, excludes=excludes, logger=quiet)
    return zipfile.ZipFile(package)


def test_a_jobs_upload_is_the_package_and_the_jobs_without_data_caches_and_environments(checkout: Path) -> None:
    names = set(uploaded(checkout).namelist())
    package = {f"mammoray/{path.name}" for path in (ROOT / "mammoray").iterdir() if path.is_file()}
    jobs = {f"jobs/{path.name}" for path in (ROOT / "jobs").iterdir() if path.is_file()}
    assert names == package | jobs | {"pyproject.toml", "my.toml"}


def test_a_jobs_upload_stays_below_two_megabytes(checkout: Path) -> None:
    """Ray stores it without compression, and refuses 500 MB."""
    assert sum(entry.file_size for entry in uploaded(checkout).infolist()) < 2_000_000
