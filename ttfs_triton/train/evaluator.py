"""The evaluations of a run: validation after each epoch, through one graph; the test images once."""

from collections.abc import Callable

from accelerate import Accelerator
from torch import Tensor, nn

from ttfs_triton.scoring import Evaluation, EvaluationBatches, PaddedScorer, Scorer, evaluate
from ttfs_triton.scoring.batches import IndexedImages
from ttfs_triton.scoring.graphs import Graphs
from ttfs_triton.train.config import TrainConfig


class Evaluator:
    """Scores the network of a run.

    Args:
        config: of the run.
        accelerator: processes, device, precision.
        graphs: of the device; None: batches are scored one by one.
        say: shows a line.
        stop: asked before each batch.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        graphs: Graphs | None,
        say: Callable[[str], None],
        stop: Callable[[], bool],
    ) -> None:
        self.config, self.accelerator, self.graphs, self.say, self.stop = config, accelerator, graphs, say, stop
        self._scorer: Scorer | None = None

    def __call__(
        self, network: nn.Module, images: IndexedImages, indices: Tensor | None = None, *, every_epoch: bool = False
    ) -> Evaluation:
        """Score images, each once over all processes.

        Args:
            network: unwrapped.
            images: and labels.
            indices: [n], int64, of those to score. Default: all.
            every_epoch: the same network will score the same images again: what is compiled and captured is kept. Else
                batches are scored as they are, also while layers count operations, sample by sample.
        Raises:
            EvaluationStopped: `stop` said so in some process.
        """
        accelerator = self.accelerator
        size = self.config.evaluation_batch_size
        batches = EvaluationBatches(images, indices, size, accelerator.process_index, accelerator.num_processes)
        if every_epoch and self._scorer is None:
            self._scorer = self._make_scorer(network, max(1, min(size, len(batches.indices))), images.shape[1:])
        return evaluate(
            network,
            batches,
            accelerator,
            scorer=self._scorer if every_epoch else None,
            num_workers=self.config.num_workers,
            stop=self.stop,
        )

    def forget(self) -> None:
        """Compile and capture anew: neurons have changed."""
        self._scorer = None

    def _make_scorer(self, network: nn.Module, batch_size: int, image_shape: tuple[int, ...]) -> Scorer:
        if self.graphs is None and self.accelerator.device.type == "cpu":
            return Scorer(
                network, self.accelerator, image_shape
            )  # nothing is compiled for a batch size: padding is mere work
        return PaddedScorer(
            network,
            self.accelerator,
            batch_size,
            image_shape,
            graphs=self.graphs,
            required=self.config.cuda_graph == "on",
            say=self.say,
        )
