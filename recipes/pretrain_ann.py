"""Train a network as an ANN (ReLU clamped to [0, 1]), to start a spiking one from its weights.

python recipes/pretrain_ann.py --model vgg11 --output-dir runs/ann
python recipes/train_vgg11_cifar10.py --weights runs/ann
"""

from ttfs_triton.command_line import recipe, start

if __name__ == "__main__":
    start("ttfs_triton.train", recipe("pretrain-ann"), __doc__)
