"""What stands where ranks speak, with collectives that are made up."""

import torch
from torch import nn

from engine.device.ranks import Ranks
from engine.models.split import RowParallel, VocabEmbedding, VocabHead

CPU = torch.device("cpu")


class Echo:
    """Collectives among ranks that all have the same."""

    def __init__(self, size: int) -> None:
        self.size = size

    def all_reduce(self, tensor: torch.Tensor) -> None:
        tensor *= self.size

    def all_gather(self, whole: torch.Tensor, part: torch.Tensor) -> None:
        whole.copy_(torch.cat([part] * self.size))

    def broadcast(self, tensor: torch.Tensor) -> None:
        pass


def ranks(rank: int = 0, size: int = 2) -> Ranks:
    return Ranks(rank, size, CPU, Echo(size))


def test_logits_are_as_wide_as_the_vocabulary_and_lie_row_by_row() -> None:
    """Kernels that sample address them by that width."""
    head = VocabHead(nn.Linear(8, 159), 317, ranks())
    logits = head(torch.randn(1, 3, 8))
    assert logits.shape == (1, 3, 317) and logits.is_contiguous()
    torch.testing.assert_close(logits[..., :158], logits[..., 159:])


def test_tokens_of_other_ranks_are_zeros_here() -> None:
    whole = nn.Embedding(10, 4, padding_idx=9)
    part = nn.Embedding(10, 4, padding_idx=9)
    part.weight = nn.Parameter(whole.weight[5:], requires_grad=False)
    found = VocabEmbedding(part, ranks(1))(torch.tensor([[0, 4, 5, 9]]))
    assert not found[0, :2].any()
    torch.testing.assert_close(found[0, 2:], 2 * whole.weight[[5, 9]].detach())


def test_what_rows_give_is_summed_up() -> None:
    linear = nn.Linear(6, 4)
    x = torch.randn(5, 6)
    with torch.inference_mode():
        torch.testing.assert_close(RowParallel(linear, ranks(size=3))(x), 3 * linear(x))


def test_numbers_and_what_holds() -> None:
    assert ranks(1, 2).numbers(3) == [0, 6]  # an echo doubles; others' numbers it does not know
    assert ranks(0, 1).agreed({"a": [1, 2]}, dict) == {"a": [1, 2]}
