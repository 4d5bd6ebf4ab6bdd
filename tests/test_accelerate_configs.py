"""The files in recipes/accelerate are read by accelerate itself and ask for what their names say."""

from pathlib import Path

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


def test_accelerate_reads_every_configuration() -> None:
    found = {}
    for path in FOLDER.glob("*.yaml"):
        config = load_config_from_file(str(path))
        assert isinstance(config, ClusterConfig)
        values = (config.distributed_type, config.num_machines, config.num_processes, config.mixed_precision)
        found[path.stem] = (*values, config.use_cpu)
        assert config.num_machines == 1 or (config.main_process_ip and config.main_process_port)
        assert config.num_machines == 1 or config.rdzv_backend == "static"
    assert found == EXPECTED
