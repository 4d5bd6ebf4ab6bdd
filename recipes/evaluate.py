"""Score a trained network on the test set, count its operations, price them on chips, simulate it as hardware would.

python recipes/evaluate.py runs/mnist --chip anp_i --steps 32 --report report.html
"""

from ttfs_triton.command_line import start

if __name__ == "__main__":
    start("ttfs_triton.evaluation.command", __doc__)
