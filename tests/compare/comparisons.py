"""A comparison that takes seconds, from the configs of the repository."""

from pathlib import Path
from typing import Any

import yaml
from runs import write_text

from b2b_jax.config import merge

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "compare"
TINY = {"num_attention_heads": 3, "hidden_size": 24, "intermediate_size": 48}
SMALL = {"num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
SHARED = {"vocab_size": 300, "max_position_embeddings": 16}


def write_comparison(folder: Path, *, of: str = "tiny", **changes: Any) -> Path:
    """A config of the repository at the smallest sizes, with further changes."""
    text = folder / "text.txt"
    if not text.exists():
        write_text(text)
    values: dict[str, Any] = {
        "extends": str(CONFIGS / f"{of}.yaml"),
        "run_dir": str(folder / "compared"),
        "seeds": [0, 1],
        "peak_learning_rates": [1e-2, 3e-2],
        "base": {
            "data": {
                "source": "files",
                "paths": [str(text)],
                "vocab_size": 300,
                "heldout_percent": 20.0,
                "prepared_dir": str(folder / "data"),
            },
            "train": {
                "steps": 16,
                "batch_size": 4,
                "sequence_length": 16,
                "masked_positions": 3,
                "eval_every": 4,
                "eval_batches": 2,
            },
            "optimizer": {"warmup_steps": 2},
            "compute": {"scan_unroll": 1},
            "log": {"every_steps": 4},
        },
        "target": {**SHARED, **TINY},
        "sources": {"main": {"model": {**SHARED, **SMALL}}},
        "first_losses": [{}, {**TINY, "num_attention_heads": 4, "hidden_size": 32}],
    }
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(merge(values, changes), sort_keys=False))
    return path


def write_few(folder: Path, methods: dict[str, Any], **changes: Any) -> Path:
    """A comparison of some methods only, with one seed and one rate."""
    path = write_comparison(folder, seeds=[0], peak_learning_rates=[1e-2], first_losses=[])
    values = yaml.safe_load(path.read_text())
    whole = yaml.safe_load((CONFIGS / "tiny.yaml").read_text())
    values = merge({**whole, "methods": {}}, values)
    values.pop("extends")
    values = merge(values, {"methods": methods, **changes})
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path
