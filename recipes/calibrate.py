"""Put a trained network on a chip's grid in seconds. Training on the grid takes epochs and is more accurate.

python recipes/calibrate.py runs/mnist --time-steps 8 --weight-bits 4 --dataset ylecun/mnist --output-dir runs/grid
"""

from ttfs_triton.command_line import start

if __name__ == "__main__":
    start("ttfs_triton.convert.calibrate_grid", __doc__)
