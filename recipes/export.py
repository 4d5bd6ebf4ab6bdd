"""Write a trained network for other programs: ONNX (the closed form) or NIR (spiking neurons in steps).

python recipes/export.py runs/mnist --format onnx --output mnist.onnx --check
python recipes/export.py owner/name --format nir --steps 64 --output mnist.nir --check --dataset ylecun/mnist
"""

from ttfs_triton.command_line import start

if __name__ == "__main__":
    start("ttfs_triton.export.command", __doc__)
