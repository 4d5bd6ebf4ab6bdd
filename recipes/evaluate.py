"""Score a trained network on the test set, count its operations, price them on chips, simulate it as hardware would.

python recipes/evaluate.py runs/mnist --chip anp_i --steps 32 --report report.html
"""

from ttfs_triton.evaluation.command import main

if __name__ == "__main__":
    main(__doc__)
