"""`b2b prepare`: tokenize a corpus once (effects)."""

from collections.abc import Callable

from b2b_jax.data import DataConfig, Prepared, prepare
from b2b_jax.train.writers import Reporter


def report_stages(reporter: Reporter) -> Callable[[str, int, int | None], None]:
    """Turn the stages of data preparation into notes, one when each begins."""
    seen: set[str] = set()

    def stage(name: str, done: int, total: int | None) -> None:
        del done, total
        if name not in seen:
            seen.add(name)
            reporter.note(f"data: {name} ...")

    return stage


def prepare_command(config: DataConfig, *, reporter: Reporter) -> Prepared:
    """Prepare the data of a run, or find it prepared, and say what it is."""
    prepared = prepare(config, progress=report_stages(reporter))
    reporter.note(
        f"data: {prepared.train_tokens:,} tokens to train on, {prepared.heldout_tokens:,} held "
        f"out, vocabulary {prepared.tokenizer.vocab_size} ({prepared.path})"
    )
    return prepared
