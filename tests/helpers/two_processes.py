"""Compute the contrastive losses and gradients of five pairs in two processes: ``python two_processes.py FOLDER``."""

import sys
from types import SimpleNamespace

import torch
from torch import Tensor, distributed, multiprocessing, nn

from mmzoo.interfaces import CAUSAL, Features, FeatureSpec, LanguageSpec
from mmzoo_tasks.contrastive import Contrastive

LOSSES = ("infonce", "sigmoid")


class Towers(nn.Module):
    """Two linear towers and the task: what a process wraps."""

    def __init__(self, loss: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.one, self.other = nn.Linear(3, 5), nn.Linear(3, 6)
        language = LanguageSpec(CAUSAL, 6, 10, None, True, 0)
        self.task = Contrastive(Contrastive.Options(dim=7, loss=loss), language, {"image": FeatureSpec(5, 5, 3)})

    def forward(self, inputs: Tensor, texts: Tensor, labels: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
        outputs = SimpleNamespace(features={"image": Features(inputs[:, None], self.one(inputs))}, text_only=self.other(texts))
        return self.task.loss(outputs, {"labels": labels, "sources": sources})[self.task.options.loss]


def whole_batch() -> list[Tensor]:
    """Return inputs, texts, labels and sources; two texts are the same, two inputs are, and the last pair lacks its input."""
    random = torch.Generator().manual_seed(3)
    pairs = [torch.randn(5, 3, generator=random) for _ in range(2)]
    return [*pairs, torch.tensor([4, 5, 6, 4, -100]), torch.tensor([1, 2, 2, 3, 9])]


def work(rank: int, folder: str) -> None:
    """Compute 3 or 2 of the pairs; the second process saves the loss and the gradients."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for loss in LOSSES:
        model = nn.parallel.DistributedDataParallel(Towers(loss))
        total, count = model(*[value[:3] if rank == 0 else value[3:] for value in whole_batch()])
        everything = torch.stack([total.detach(), count.float()])
        distributed.all_reduce(everything)
        (2 * total / everything[1]).backward()  # as the trainer does
        found[loss] = everything, {name: p.grad for name, p in model.module.named_parameters()}
    if rank == 1:
        torch.save(found, f"{folder}/found")
    distributed.destroy_process_group()


if __name__ == "__main__":
    multiprocessing.start_processes(work, (sys.argv[1],), nprocs=2, start_method="fork")
