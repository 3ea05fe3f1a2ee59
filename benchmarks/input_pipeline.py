"""How many tokens per second the input pipeline serves, alone, beside Grain by itself.

Batches are read in random order from a file of random token numbers, as in training. Contenders,
which give the same batches (this is checked):

  Grain    the usual pipeline: MapDataset.source(windows).seed().shuffle().repeat().batch(), one
           window at a time, read ahead by as many threads as ours
  b2b_jax  `train_batches`: order and windows of a batch at once, read ahead by Grain's threads

The rows "order" and "windows" are the two parts of ours, called without threads. Masks are drawn on
the device, within the training step. Nothing is starved as long as these figures are far above the
tokens per second of the device: in a run, the column data_wait of metrics.csv has the share of the
time that was spent waiting, and its last line tells it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness

THREADS, AHEAD = 4, 16  # of Grain's reading ahead, for both
LEAD_IN = 3 * AHEAD


class OneByOne:
    """Windows as a user of Grain would serve them."""

    def __init__(self, tokens: Any, length: int, ends: tuple[int, int] | None) -> None:
        self.tokens, self.ends = tokens, ends
        self.body = length - 2 if ends else length

    def __len__(self) -> int:
        return len(self.tokens) // self.body

    def __getitem__(self, index: int) -> dict[str, Any]:
        import numpy as np

        row = np.asarray(self.tokens[index * self.body : (index + 1) * self.body], np.int32)
        if self.ends:
            row = np.concatenate([self.ends[:1], row, self.ends[1:]]).astype(np.int32)
        return {"input_ids": row}


Batches = Callable[[], Iterator[Any]]


def seconds_per_batch(batches: Batches, seconds: float) -> tuple[float, float]:
    """Take batches for some seconds, after those that were read ahead at the start.

    Returns:
        seconds per batch, and those that processors worked on it, all threads together.
    """
    iterator = batches()
    for _ in range(LEAD_IN):
        next(iterator)
    began, worked, count, spent = time.perf_counter(), time.process_time(), 0, 0.0
    while spent < seconds:
        next(iterator)
        count, spent = count + 1, time.perf_counter() - began
    worked = time.process_time() - worked
    # Or its threads would go on reading ahead while another contender is measured.
    iterator.close()  # pyright: ignore[reportAttributeAccessIssue]
    time.sleep(harness.SETTLE_S)
    return spent / count, worked / count


def contenders(prepared: Any, *, layout: str, length: int, batch_size: int) -> dict[str, Batches]:
    """Name -> what makes an iterator of batches."""
    import grain
    import numpy as np

    from b2b_jax.data import train_batches
    from b2b_jax.data.order import shuffled
    from b2b_jax.data.pipeline import Windows

    path, info = prepared.path / "train.npy", prepared.tokenizer
    ends = (info.cls_id, info.sep_id) if layout == "bert" else None
    source = OneByOne(np.load(path, mmap_mode="r"), length, ends)
    order = grain.MapDataset.source(source).seed(0).shuffle().repeat()
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)
    settings: dict[str, Any] = {"sequence_length": length, "layout": layout, "seed": 0}

    def theirs() -> Iterator[Any]:
        return iter(order.batch(batch_size).to_iter_dataset(options))

    def ours() -> Iterator[Any]:
        return train_batches(prepared, **settings, batch_size=batch_size, start_step=0)

    np.testing.assert_array_equal(next(theirs())["input_ids"], next(ours())["input_ids"])
    windows = Windows(path, prepared, length, layout)
    rows, picks = np.arange(batch_size), np.random.default_rng(0).permutation(len(windows))
    turns = len(windows) // batch_size

    def some_order() -> Iterator[Any]:
        for step in range(2**40):
            yield shuffled(step * batch_size + rows, length=len(windows), seed=0)

    def some_windows() -> Iterator[Any]:
        for step in range(2**40):
            first = step % turns * batch_size
            yield windows.take(picks[first : first + batch_size])

    return {"Grain": theirs, "b2b_jax": ours, "order": some_order, "windows": some_windows}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--tokens", type=int, default=100_000_000, help="in the file")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--sequence-length", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--layout", choices=("bert", "gpt2"), nargs="+", default=["bert", "gpt2"])
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contender")
    parser.add_argument("--seconds", type=float, default=1.0, help="of every turn")
    args = parser.parse_args()

    import numpy as np

    from b2b_jax.data import Prepared, TokenizerInfo

    facts = harness.machine(malloc="default", threads=args.threads)
    rows, raw = [], {}
    with tempfile.TemporaryDirectory() as folder:
        numbers = np.random.default_rng(0).integers(200, 30000, args.tokens, dtype=np.uint16)
        np.save(Path(folder) / "train.npy", numbers)
        tokenizer = TokenizerInfo(30522, 0, 103, 101, 102, (0, 100, 101, 102, 103))
        prepared = Prepared(Path(folder), tokenizer, args.tokens, 0, {}, "")
        for layout in args.layout:
            for length in args.sequence_length:
                made = contenders(
                    prepared, layout=layout, length=length, batch_size=args.batch_size
                )
                seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
                for _ in range(args.rounds):
                    for name, batches in made.items():
                        seconds[name].append(seconds_per_batch(batches, args.seconds))
                tokens = args.batch_size * length / 1e6
                spent, worked = (
                    {name: harness.median([turn[i] for turn in s]) for name, s in seconds.items()}
                    for i in (0, 1)
                )
                rates = (f"{tokens / spent[name]:,.1f}" for name in made)
                ratios = (f"{of['Grain'] / of['b2b_jax']:.0f}" for of in (spent, worked))
                rows.append((layout, length, *rates, *ratios))
                harness.progress(f"{layout}, {length} tokens: done")
                raw[f"{layout} {length}"] = seconds
    harness.print_facts("Machine", facts)
    harness.print_facts("Workload", {"batch": args.batch_size, "tokens in the file": args.tokens})
    print("\nMillions of tokens per second (median):")
    names = ("Grain", "b2b_jax", "order", "windows")
    header = ("layout", "length", *names, "b2b_jax / Grain", "the same by processor time")
    harness.print_table(header, rows)
    harness.write_json(
        args.json, {"machine": facts, "workload": vars(args), "seconds per batch": raw}
    )


if __name__ == "__main__":
    main()
