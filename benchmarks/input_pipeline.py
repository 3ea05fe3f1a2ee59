"""How fast batches are served, alone, beside what a step of BERT-base eats.

Batches of 512 tokens are read from a token file of random numbers, shuffled, as in training. The
input pipeline starves nothing as long as its tokens per second are far above those of the device;
in a run the column data_wait of metrics.csv has the share of the time that was spent waiting.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import harness


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--tokens", type=int, default=100_000_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to measure")
    args = parser.parse_args()

    import numpy as np

    from b2b_jax.data import Prepared, TokenizerInfo, train_batches

    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        path = Path(folder)
        np.save(path / "train.npy", rng.integers(200, 30000, args.tokens, dtype=np.uint16))
        tokenizer = TokenizerInfo(30522, 0, 103, 101, 102, (0, 100, 101, 102, 103))
        prepared = Prepared(path, tokenizer, args.tokens, 0, "")
        batches = train_batches(
            prepared,
            sequence_length=args.sequence_length,
            layout="bert",
            batch_size=args.batch_size,
            seed=0,
            start_step=0,
        )
        next(batches)
        began, served = time.perf_counter(), 0
        while time.perf_counter() - began < args.seconds:
            next(batches)
            served += 1
        spent = time.perf_counter() - began
    tokens = served * args.batch_size * args.sequence_length
    print(
        f"{tokens / spent:,.0f} tokens/s, {served / spent:.1f} batches/s of {args.batch_size} x "
        f"{args.sequence_length}"
    )


if __name__ == "__main__":
    main()
