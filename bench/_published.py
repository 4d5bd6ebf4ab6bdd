"""Published figures that ours stand beside: accuracy in percent, sparsity as spikes over neurons."""

from dataclasses import dataclass

PAPER = "Wei et al., ICCV 2023, Table 1"
BEST = "Che et al., AAAI 2026, doi:10.1609/aaai.v40i3.37149"


@dataclass(frozen=True)
class Target:
    """A row that the table always has.

    Attributes:
        data: data set on the Hub.
        title: for readers.
        model: of the recipes.
        paper_accuracy, paper_sparsity: of the paper; None where it has no such row.
        best_accuracy: the best that a network with time-to-first-spike coding has been published with, of any size.
    """

    data: str
    title: str
    model: str
    paper_accuracy: float | None
    paper_sparsity: float | None
    best_accuracy: float


TARGETS = (
    Target("ylecun/mnist", "MNIST", "cnn1", 99.4, 0.3913, 99.51),
    Target("zalando-datasets/fashion_mnist", "Fashion-MNIST", "cnn1", None, None, 93.14),
    Target("uoft-cs/cifar10", "CIFAR-10", "vgg11", 91.17, 0.4387, 95.06),
    Target("uoft-cs/cifar10", "CIFAR-10", "vgg16", 93.05, 0.2561, 95.06),
    Target("uoft-cs/cifar100", "CIFAR-100", "vgg16", 69.66, 0.2845, 74.07),
)
