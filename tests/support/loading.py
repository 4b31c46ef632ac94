"""What a DataLoader's workers import, and no more."""

import os

import torch
from torch.utils.data import Dataset


class Records(Dataset):
    """A store in pieces of 16 records, read in the worker that is asked; one piece kills it."""

    def __init__(self, store, dies=-1):
        self.store, self.dies = store, dies

    def __len__(self):
        return self.store.num_records // 16

    def __getitem__(self, number):
        if number == self.dies:
            os._exit(9)
        found = self.store.read(range(number * 16, number * 16 + 16))
        return torch.from_numpy(found.entries.astype("int64"))
