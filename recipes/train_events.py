"""Train on recordings of an event camera: in a window, the first event of a pixel and polarity is a spike.

python recipes/train_events.py --preset nmnist --data-dir N-MNIST          # holds Train/ and Test/
python recipes/train_events.py --preset dvs_gesture --data-dir DvsGesture  # holds trials_to_train.txt
"""

import sys

from ttfs_triton.ttfs import main

if __name__ == "__main__":
    main(["train", "events", *sys.argv[1:]])
