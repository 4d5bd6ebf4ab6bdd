"""Train a network of your own, built by a function in your file.

python recipes/train_own.py --network recipes/own_network.py:build --dataset sample
"""

import sys

from ttfs_triton.ttfs import main

if __name__ == "__main__":
    main(["train", "own", *sys.argv[1:]])
