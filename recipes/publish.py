"""Publish a trained network on the Hugging Face Hub, with a model card made from its run.

python recipes/publish.py runs/mnist --repo-id YOU/mnist-cnn1 --dry-run
"""

from ttfs_triton.command_line import start

if __name__ == "__main__":
    start("ttfs_triton.hub.publish", __doc__)
