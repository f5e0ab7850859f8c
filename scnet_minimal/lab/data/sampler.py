"""The order of an epoch: which images are in which batch, for classification and detection alike."""
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from ..errors import UserError


def seed_of(*key: int) -> int:
    """One seed from several numbers; (seed 0, epoch 1) and (seed 1, epoch 0) have nothing in common."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


class EpochSampler(Sampler[list[int]]):
    """The batches of an epoch as lists of indices: a function of (seed, epoch, start, shard), and of nothing else.

    So a resumed run sees what an uninterrupted one would have seen, without any state to save.  Serves as a
    DataLoader's batch_sampler.

    n           number of images
    batch_size  images per step, over all processes together
    seed        None: validation, in order, each image once
    shard       (rank, world).  In training each process gets its part of every batch, all parts of one size: together
                they take the step that one process would take.  In validation each gets its part of the images, and
                none is left out or counted twice
    drop_last   in training, leave out a smaller last batch (but for a single batch).  Otherwise it is kept if it has
                two images for each process: batch norm cannot learn from one

    UserError if batch_size cannot be divided evenly by the number of processes.
    """

    def __init__(self, n: int, batch_size: int, *, seed: int | None = None, shard: tuple[int, int] = (0, 1),
                 drop_last: bool = False) -> None:
        self.n, self.batch_size, self.seed, self.shard, self.drop_last = n, batch_size, seed, shard, drop_last
        self.epoch = self.start = 0
        if batch_size % shard[1]:
            raise UserError(f"A batch of {batch_size} cannot be shared evenly by {shard[1]} processes: take "
                            f"{max(1, batch_size // shard[1]) * shard[1]}.")

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Which epoch the next iteration is, and from which batch on; as with DistributedSampler, it stays so."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """The number of batches in a whole epoch."""
        n, b, (rank, world) = self.n, self.batch_size, self.shard
        if self.seed is None:
            return -(-len(range(rank, n, world)) // -(-b // world))
        if n <= b:
            return int(n >= world)
        return n // b + (not self.drop_last and n % b >= 2 * world)

    def batches(self) -> tuple[Tensor, ...]:
        """The indices of each batch of this epoch, from `start` on: (B,) int64 each."""
        rank, world = self.shard
        if self.seed is None:
            return torch.arange(rank, self.n, world).split(-(-self.batch_size // world))[self.start:]
        batches = self._order_and_flips()[0].split(self.batch_size)[self.start:len(self)]
        return tuple(index[:len(index) // world * world][rank::world] for index in batches)

    def __iter__(self) -> Iterator[list[int]]:
        return (index.tolist() for index in self.batches())

    def flips(self) -> Tensor:
        """Whether each of the n images is mirrored in this epoch: (n,) bool, half of them; never in validation."""
        return torch.zeros(self.n, dtype=torch.bool) if self.seed is None else self._order_and_flips()[1]

    def generator(self, purpose: int) -> torch.Generator:
        """A generator for another purpose (1, 2, ...) of this epoch; 0 is the order's."""
        return torch.Generator().manual_seed(seed_of(self.seed, self.epoch, purpose))

    def _order_and_flips(self) -> tuple[Tensor, Tensor]:
        generator = self.generator(0)
        return torch.randperm(self.n, generator=generator), torch.rand(self.n, generator=generator) < 0.5
