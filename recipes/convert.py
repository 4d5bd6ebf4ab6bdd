"""Convert a trained ANN into a spiking network: a VGG of torchvision, timm and other projects, or the paper's.

python recipes/convert.py timm/vgg16_bn.tv_in1k --data-dir IMAGES --image-size 64 --output-dir runs/converted
"""

from ttfs_triton.command_line import start

if __name__ == "__main__":
    start("ttfs_triton.convert.command", __doc__)
