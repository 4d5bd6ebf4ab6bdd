"""The files in recipes/accelerate are read by accelerate itself and ask for what their names say."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType

FOLDER = Path(__file__).parent.parent / "recipes" / "accelerate"


@pytest.mark.parametrize("name", ["cpu", "single_gpu", "multi_gpu", "multi_node"])
def test_accelerate_reads_every_configuration(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert config.use_cpu == (name == "cpu")
    assert (config.distributed_type == DistributedType.MULTI_GPU) == name.startswith("multi")
    assert (config.num_machines > 1) == (name == "multi_node") == (config.main_process_ip is not None)
