"""Training in several processes, as torchrun starts them: each computes a part of every step."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from codec import OptionError

if TYPE_CHECKING:
    from strategies.server_model import Batch

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes that train together; one, unless torchrun has started more.

    Attributes
    ----------
    rank : int
        Which of them this is; 0 writes results.
    size : int
        How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one decides, and writes."""
        return self.rank == 0

    def agreed(self, value: T) -> T:
        """Return the first process's value; all have to ask."""
        if self.size == 1:
            return value
        told = [value]
        distributed.broadcast_object_list(told)
        return told[0]

    def shared(self, model: nn.Module) -> nn.Module:
        """Return a model whose gradients are the means over all processes.

        On CUDA devices batch normalization takes its statistics from all of a minibatch, as in one
        process. On CPUs each process normalizes its own part.

        Parameters
        ----------
        model : nn.Module
            On this process's device, and the same in all of them.
        """
        first = next(model.parameters())
        if first.device.type == "cuda":
            synchronized: Any = nn.SyncBatchNorm  # torch's has no types
            model = synchronized.convert_sync_batchnorm(model)
        # A static graph may have parameters that take no part in the loss.
        return DistributedDataParallel(model, static_graph=True)

    def part_of(self, batch: "Batch") -> "Batch":
        """Return the samples of a minibatch that are this process's.

        Raises
        ------
        OptionError
            If there are fewer than processes.
        """
        samples, targets, weights = batch
        if len(samples) < self.size:
            raise OptionError(
                "server_batch_size",
                f": a minibatch of {len(samples)} samples cannot be shared by {self.size} "
                "processes; take larger ones, or start fewer",
            )
        part = slice(self.rank, None, self.size)
        return samples[part], targets[part], weights[part]

    def share_of_mean(self, losses: Tensor, norms: Tensor) -> Tensor:
        r"""Return what the mean over processes has to be taken of for $\sum l / \sum n$.

        Parameters
        ----------
        losses, norms : Tensor (N,)
            Weighted losses, with their graph, and what they add to the denominator.
        """
        total = norms.detach().sum()
        distributed.all_reduce(total)
        return self.size * losses.sum() / total.clamp_min(torch.finfo(total.dtype).tiny)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a scalar over all processes."""
        total = value.detach() / self.size
        distributed.all_reduce(total)
        return total


def together(work: Callable[[Processes], None]) -> None:
    """Let this process, and those that torchrun has started with it, do something together.

    On machines with CUDA devices, each takes the one that has its local rank. A process that
    torchrun has started ends here, and at once: Python's own end has been seen to abort while
    threads of the group still ran (gloo, torch 2.14, a busy machine).

    Parameters
    ----------
    work : callable
        Called once, with the processes.

    Raises
    ------
    Exception
        Whatever the call raises; torchrun then stops the other processes.
    """
    if not distributed.is_available() or not distributed.is_torchelastic_launched():
        work(Processes())
        return
    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if on_cuda else "gloo")
    work(Processes(distributed.get_rank(), distributed.get_world_size()))
    distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
