"""Train a network as an ANN (ReLU clamped to [0, 1]), to start a spiking one from its weights.

python recipes/pretrain_ann.py --model vgg11 --output-dir runs/ann
python recipes/train_vgg11_cifar10.py --weights runs/ann
"""

from pathlib import Path

from ttfs_triton.command_line import start

if __name__ == "__main__":
    start("ttfs_triton.train", Path(__file__).with_suffix(".yaml"), __doc__)
