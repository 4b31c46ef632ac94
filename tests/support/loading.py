"""What a DataLoader's workers import, and no more.

`python -m support.loading STORE PIECE` loads with workers, one of which dies at PIECE, and prints
what torch then said and how many pieces can still be read.
"""

import json
import os
import sys

import torch
from torch.utils.data import DataLoader, Dataset


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


def main(path: str, piece: str) -> None:
    from axolotl_distill.store import open_store

    store, error = open_store(path), ""
    try:
        dying = Records(store, dies=int(piece))
        list(DataLoader(dying, batch_size=None, num_workers=2, multiprocessing_context="fork"))
    except RuntimeError as raised:
        error = str(raised)
    read = len(list(DataLoader(Records(store), batch_size=None)))
    print(json.dumps({"error": error, "read_after": read}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
