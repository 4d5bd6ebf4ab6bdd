"""Score a trained network on the test set, count its operations, estimate its energy on chips, simulate it on a clock.

python recipes/evaluate.py runs/mnist --chip anp_i --steps 32 --report report.html
"""

from ttfs_triton.command_line import start

if __name__ == "__main__":
    start("ttfs_triton.evaluation.command", __doc__)
