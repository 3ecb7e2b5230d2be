"""A small sweep whose right answer is known without the code under test."""

import torch

SIZE = (3, 5)


def work(item: int) -> dict[str, torch.Tensor]:
    """Numbers that hang on every bit of the item's own random matrix."""
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(item))
    effect = torch.tanh(x @ x.T / 8)[: SIZE[0], : SIZE[1]]
    return {"effect": effect, "index": torch.tensor(item)}


def make_work():
    return work


def key_of(item: int) -> str:
    return f"item-{item}"


def expected(items) -> dict[str, torch.Tensor]:
    """What a sweep must give: a plain loop."""
    found = [work(item) for item in items]
    return {name: torch.stack([each[name] for each in found]) for name in found[0]}


def assert_same(found, wanted) -> None:
    """Bit for bit."""
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert found[name].numpy().tobytes() == tensor.numpy().tobytes()
