import pytest

from ttfs_triton.train.position import Position


@pytest.mark.parametrize(
    ("best", "figures", "expected"),
    [
        ((-1.0, None), (0.0, 2.3), True),  # the first epoch, whatever it reached
        ((0.99, 0.04), (0.98, 0.01), False),
        ((0.98, 0.01), (0.99, 0.04), True),
        ((0.99, 0.04), (0.99, 0.03), True),
        ((0.99, 0.03), (0.99, 0.04), False),
        ((0.99, 0.03), (0.99, 0.03), True),  # the later of two that are equal
        ((0.99, None), (0.99, 0.03), True),  # a checkpoint that knows no loss
    ],
)
def test_position_is_best_by_accuracy_then_loss_then_epoch(best, figures, expected):
    position = Position(best_accuracy=best[0], best_loss=best[1])
    assert position.is_best(*figures) is expected
