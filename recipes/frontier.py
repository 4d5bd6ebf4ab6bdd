"""Sweep a network's cost against its accuracy: targets of activity or energy, chips' grids, faults, deadlines.

python recipes/frontier.py bundled:cnn1-mnist --data-dir MNIST --output-dir frontier --target-sparsity 0.2 0.15 0.1
python recipes/frontier.py runs/mnist --output-dir frontier --time-steps 4 8 --weight-bits 2 4 --train-grids --deadlines
"""

from ttfs_triton.command_line import start

if __name__ == "__main__":
    start("ttfs_triton.frontier.command", __doc__)
