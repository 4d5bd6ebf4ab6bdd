"""The files in recipes/accelerate are read by accelerate itself and ask for what their names say."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType

FOLDER = Path(__file__).parent.parent / "recipes" / "accelerate"
# name: (distributed type, machines, processes of all machines, mixed precision, CPU)
EXPECTED = {
    "cpu": (DistributedType.NO, 1, 1, "no", True),
    "single_gpu": (DistributedType.NO, 1, 1, "bf16", False),
    "multi_gpu": (DistributedType.MULTI_GPU, 1, 8, "bf16", False),
    "multi_node": (DistributedType.MULTI_GPU, 2, 16, "bf16", False),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_configuration(name: str) -> None:
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    found = (
        config.distributed_type,
        config.num_machines,
        config.num_processes,
        config.mixed_precision,
        config.use_cpu,
    )
    assert found == EXPECTED[name]


def test_every_configuration_is_checked() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(EXPECTED)


def test_multi_node_names_the_first_node() -> None:
    config = load_config_from_file(str(FOLDER / "multi_node.yaml"))
    assert isinstance(config, ClusterConfig)
    assert config.main_process_ip
    assert config.main_process_port
    assert config.rdzv_backend == "static"
