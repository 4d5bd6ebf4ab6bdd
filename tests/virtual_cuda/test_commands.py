"""Every command of the README in its smallest form, from start to finish on the virtual CUDA device.

On request, some ten minutes of one core: pytest tests/virtual_cuda/test_commands.py -m slow
"""

import json
import re
import shlex

import pytest
import torch
from safetensors.torch import load_file

from tests.bench.modules import run_python
from tests.convert.sources import randomised, vgg
from tests.virtual_cuda import why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]
TINY = "--epochs 1 --max-train-samples 64 --max-test-samples 20 --batch-size 16"
TINIER = "--model 2C3s4-8 --epochs 1 --max-train-samples 8 --max-test-samples 4 --batch-size 4 --validation-fraction 0"
RUN = "--output-dir {tmp_path}/run"
VGG11 = f"--dataset sample --image-size 32 --width 0.0625 {TINY} --num-workers 0"
FLOAT16 = f"recipes/quickstart.py --model 4C5-P4-16 {TINY} --mixed-precision fp16 --optimizer sgd "
FLOAT16 += "--gradient-accumulation 2 --gradient-clip 1 --checkpoint-steps 2"
# In braces stand fixtures.
COMMANDS = {
    "bfloat16": f"recipes/quickstart.py --model 4C5-P4-16 {TINY} --mixed-precision bf16 --num-workers 2 {RUN}",
    "triton": f"recipes/quickstart.py {TINIER} --backend triton --mixed-precision fp16 --gradient-accumulation 2 {RUN}",
    "mnist": f"recipes/train_cnn_mnist.py --dataset sample --width 0.25 {TINY} {RUN}",
    "vgg11": f"recipes/train_vgg11_cifar10.py {VGG11} {RUN}",
    "vgg16-cifar100": f"recipes/train_vgg16_cifar100.py {VGG11} --batch-size 8 {RUN}",
    "calibrated": f"recipes/train_vgg11_cifar10.py {VGG11} --model 4C3-P2-6C3-P2 --width 1 --encoder analog "
    f"--no-weight-standardisation --calibration-images 16 --weights {{ann}} {RUN}",
    "convert": "ttfs convert {ann} --network tests.virtual_cuda.test_commands:build --dataset sample "
    "--image-size 32 --mean 0.3 --std 0.4 --calibration-images 16 --output-dir {tmp_path}/converted",
    "onnx": "ttfs export {trained} --format onnx --output {tmp_path}/a.onnx --check --check-images 6",
    "nir": "ttfs export {trained} --format nir --steps 16 --output {tmp_path}/a.nir --check --check-images 6",
    "publish": "ttfs publish {trained} --repo-id you/mnist-cnn1 --dry-run",
    "kernels": "bench/kernels.py --model cnn1 --op linear --dtypes fp16 --batch-size 2 "
    "--providers triton torch composed --output {tmp_path}",
    "train_step": "bench/train_step.py --device cuda --model cnn1 --width 0.0625 --batch-size 2 --repeats 1 "
    "--dtypes float32 --output {tmp_path}",
    "peers": "bench/peers.py --device cuda --batch-size 2 --width 0.0625 --repeats 1 --steps 2 --output {tmp_path}",
}


def run(command: str) -> str:
    """The output of a script, or of the command `ttfs`, on the virtual device."""
    variables = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    words = ("-m", "tests.virtual_cuda", *shlex.split(re.sub("^ttfs ", "ttfs_triton/ttfs.py ", command)))
    return run_python(*words, interpret=True, **variables, TTFS_KERNELS_BACKEND="torch")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run in float16 with all that a step can have, stopped in the middle and resumed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(f"{FLOAT16} --output-dir {folder}")
    return folder


def build(num_classes=10):
    """The ANN of the fixture `ann`, without its weights."""
    return vgg(6 * 8 * 8, num_classes, plan=(4, "M", 6, "M"), channels=1)


@pytest.fixture(scope="session")
def ann(tmp_path_factory):
    file = tmp_path_factory.mktemp("ann") / "vgg.pth"
    torch.save(randomised(build()).state_dict(), file)
    return file


def test_float16_run_is_scored_counted_simulated_and_priced(trained, tmp_path):
    summary = json.loads((trained / "summary.json").read_text())
    assert (summary["device"], summary["mixed_precision"]) == ("virtual CUDA device", "fp16")
    flags = f"--chip all --steps 8 --max-test-samples 20 --report {tmp_path / 'page.html'}"
    run(f"ttfs evaluate {trained} {flags} --output-dir {tmp_path / 'out'}")
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (result["images"], result["simulation"]["steps"]) == (20, 8)
    assert (tmp_path / "page.html").stat().st_size > 10_000


def test_interrupted_run_is_resumed(trained, tmp_path):
    (trained / "summary.json").rename(tmp_path / "summary.json")
    newest = max((trained / "checkpoints").iterdir())
    before = load_file(newest.rename(tmp_path / newest.name))
    assert "resumed after step 2" in run(f"{FLOAT16} --output-dir {trained} --resume")
    again = load_file(newest)
    assert again.keys() == before.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_command_ends_well(name, tmp_path, request):
    shown = run(re.sub(r"{(\w+)}", lambda name: str(request.getfixturevalue(name[1])), COMMANDS[name]))
    if "recipes/" in COMMANDS[name]:
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["device"] == "virtual CUDA device"
    assert ("Calibrated on 16 images" in shown) == (name == "calibrated")
