"""Train a network of your own, built by a function in your file.

python recipes/train_own.py --network recipes/own_network.py:build --dataset sample
"""

from ttfs_triton.command_line import recipe, start

if __name__ == "__main__":
    start("ttfs_triton.train", recipe("own"), __doc__)
