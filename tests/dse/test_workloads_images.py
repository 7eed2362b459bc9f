"""Image sets and top-1 accuracy."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dse.workloads import Accuracy, ImageSet, top1_accuracy
from quantizers.errors import UsageError


def test_batches_normalise_bytes_per_channel() -> None:
    inputs = torch.tensor([[[[0, 255]], [[10, 30]]]], dtype=torch.uint8)
    images = ImageSet(inputs, torch.tensor([3]), mean=(127.0, 10.0), std=(128.0, 5.0))
    ((batch, labels),) = images.batches(8)
    assert batch.dtype == torch.float32
    assert batch.tolist() == [[[[-127 / 128, 1.0]], [[0.0, 4.0]]]]
    assert labels is not None
    assert labels.tolist() == [3]


def test_the_last_batch_is_smaller_and_order_is_kept() -> None:
    images = ImageSet(torch.arange(5.0).view(5, 1), torch.arange(5))
    batches = list(images.batches(2))
    assert [inputs.view(-1).tolist() for inputs, _ in batches] == [[0.0, 1.0], [2.0, 3.0], [4.0]]
    assert [labels.tolist() for _, labels in batches if labels is not None] == [[0, 1], [2, 3], [4]]


def test_one_normalisation_value_serves_every_channel() -> None:
    ((batch, labels),) = ImageSet(torch.ones(2, 3, 4), None, (0.5,), (2.0,)).batches(2)
    assert batch.shape == (2, 3, 4)
    assert torch.equal(batch, torch.full((2, 3, 4), 0.25))
    assert labels is None


def test_first_takes_a_view_of_the_leading_images() -> None:
    images = ImageSet(torch.arange(4.0).view(4, 1), torch.arange(4), (1.0,), (2.0,))
    subset = images.first(3)
    assert len(subset) == 3
    assert subset.inputs.data_ptr() == images.inputs.data_ptr()
    assert subset.labels is not None
    assert subset.labels.tolist() == [0, 1, 2]
    assert (subset.mean, subset.std) == ((1.0,), (2.0,))
    assert len(images.first(None)) == 4


@pytest.mark.parametrize("count", [0, -1, 5])
def test_first_refuses_what_is_not_there(count: int) -> None:
    images = ImageSet(torch.zeros(4, 1))
    with pytest.raises(UsageError) as caught:
        images.first(count, "evaluation_images")
    assert str(caught.value) == f"evaluation_images must be between 1 and 4 (all there are), not {count}"


@pytest.mark.parametrize(
    ("inputs", "labels", "mean", "std", "message"),
    [
        (
            torch.zeros(0, 1),
            None,
            (0.0,),
            (1.0,),
            "inputs must have the shape (images, channels, ...) with at least one image, not (0, 1)",
        ),
        (
            torch.zeros(3),
            None,
            (0.0,),
            (1.0,),
            "inputs must have the shape (images, channels, ...) with at least one image, not (3,)",
        ),
        (
            torch.zeros(2, 1, dtype=torch.int32),
            None,
            (0.0,),
            (1.0,),
            "inputs must be uint8 or floating point, not torch.int32",
        ),
        (
            torch.zeros(2, 1),
            torch.zeros(2),
            (0.0,),
            (1.0,),
            "labels must be int64 class indices, not torch.float32",
        ),
        (
            torch.zeros(2, 1),
            torch.zeros(3, dtype=torch.int64),
            (0.0,),
            (1.0,),
            "labels must have one class for each of the 2 inputs, shape (2,), not (3,)",
        ),
        (
            torch.zeros(2, 3),
            None,
            (0.0, 1.0),
            (1.0,),
            "mean must have 1 value or one for each of the 3 channels, not 2",
        ),
        (torch.zeros(2, 3), None, (0.0,), (1.0, 0.0, 1.0), "std must be positive, not 0.0"),
    ],
)
def test_wrong_sets_are_refused(
    inputs: Tensor, labels: Tensor | None, mean: tuple[float, ...], std: tuple[float, ...], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        ImageSet(inputs, labels, mean, std)
    assert str(caught.value) == message


def test_a_batch_size_of_zero_is_refused_at_the_call() -> None:
    with pytest.raises(UsageError) as caught:
        ImageSet(torch.zeros(2, 1)).batches(0)
    assert str(caught.value) == "batch_size must be a positive integer, not 0"


def test_a_set_prints_its_shape_and_not_its_pixels() -> None:
    assert repr(ImageSet(torch.zeros(2, 1, 4, 4))) == "ImageSet(2 x 1 x 4 x 4, torch.float32, unlabelled)"


def test_accuracy_counts_correct_answers_one_by_one() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 2.0], [math.nan, 1.0]])
    measured = top1_accuracy(nn.Identity(), ImageSet(logits, torch.tensor([0, 0, 0, 0])), batch_size=3)
    assert measured.correct.tolist() == [True, False, True, False]
    assert measured.images == 4
    assert measured.fraction == 0.5
    assert measured.percent == 50.0
    assert measured.standard_error == pytest.approx(25.0)


def test_standard_error_is_binomial() -> None:
    correct = torch.zeros(500, dtype=torch.bool)
    correct[:451] = True
    assert Accuracy(correct).standard_error == pytest.approx(100 * math.sqrt(0.902 * 0.098 / 500))


def test_accuracy_runs_in_eval_mode_and_puts_the_mode_back() -> None:
    model = nn.Dropout(0.5)
    inputs = torch.eye(10).repeat(20, 1)
    images = ImageSet(inputs, torch.arange(10).repeat(20))
    assert top1_accuracy(model, images).fraction == 1.0
    assert model.training


def test_accuracy_needs_labels_and_logits() -> None:
    with pytest.raises(UsageError) as caught:
        top1_accuracy(nn.Identity(), ImageSet(torch.zeros(2, 3)))
    assert str(caught.value) == "accuracy needs labels, and this image set has none"
    images = ImageSet(torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(UsageError) as caught:
        top1_accuracy(nn.Identity(), images)
    assert str(caught.value) == "the model must return logits of shape (batch, classes), not (2, 3, 4)"


def test_drawn_images_are_a_seeded_sample_in_stored_order() -> None:
    images = ImageSet(torch.arange(20.0).reshape(20, 1), torch.arange(20))
    drawn = images.drawn(5, seed=1)
    assert drawn.labels is not None
    assert drawn.inputs[:, 0].tolist() == drawn.labels.tolist() == sorted(set(drawn.labels.tolist()))
    assert images.drawn(5, seed=1).inputs.tolist() == drawn.inputs.tolist()
    assert images.drawn(5, seed=2).inputs.tolist() != drawn.inputs.tolist()
    assert images.drawn(None, seed=1) is images
    with pytest.raises(
        UsageError, match=r"^calibration_images must be between 1 and 20 \(all there are\), not 21$"
    ):
        images.drawn(21, seed=0, what="calibration_images")
