"""`b2b plot attention`: what the heads of a model and of its source look at (effects)."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from b2b_jax.commands.sample import plain_sample, tokenizer_folder
from b2b_jax.commands.verify import fitting_plan, load_source
from b2b_jax.config import raise_problems
from b2b_jax.convert import is_hf_folder
from b2b_jax.data import DataError
from b2b_jax.data.tokenizer import load_tokenizer
from b2b_jax.evaluate import attention_probabilities, compare_heads, head_donors
from b2b_jax.evaluate.layers import model_inputs
from b2b_jax.growth import GrowthPlan
from b2b_jax.models import ConfigError, build_model
from b2b_jax.report.attention import attention_figure, csv_table
from b2b_jax.report.files import write_files
from b2b_jax.report.plot import png_bytes
from b2b_jax.train.saved import SavedModel, load_model
from b2b_jax.train.writers import Reporter

ROWS = 32


@dataclass(frozen=True)
class AttentionRequest:
    """What `b2b plot attention` was asked for.

    Attributes:
        folders: the source, then the grown model.
        text: file of plain text; "" reads the source's held-out text.
        out: folder to write to; "" is ``NAME_attention`` next to the grown model.
        tokens: per row of text.
        layers: which to draw; none means all.
        heads: which to draw; none means all.
        names: of the two pictures.
    """

    folders: tuple[str, ...]
    text: str = ""
    out: str = ""
    tokens: int = 24
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    names: tuple[str, str] = ("source", "grown")


def attention_command(request: AttentionRequest, *, reporter: Reporter) -> None:
    """Draw the attention of two models on one text and say how alike their heads are.

    Writes source.png, grown.png and similarity.csv. Donors of the grown heads come from the growth
    plan that lies with the grown model; without one, only the closest heads are found.

    Raises:
        ConfigError: if there are not two folders, if their models cannot read the same text, or
            lack the layers or heads that were asked for.
        CheckpointError, ConvertError: if a folder holds no model that can be read.
        DataError: if there is no text.
        ReportError: if matplotlib is not installed.
    """
    if len(request.folders) != 2:
        raise ConfigError(
            f"b2b plot attention: found {len(request.folders)} folders "
            f"({', '.join(request.folders) or 'none'}), expected two, of a model and of what was "
            "grown from it; a run that is called attention is ./attention"
        )
    folders = request.folders
    large = load_model(folders[1])
    small = load_source(folders[0], large)
    plan = fitting_plan(large, small)
    _check(request, small, large, plan)
    _note_origin(large, small, plan, folders, reporter=reporter)
    tokens = min(request.tokens, _longest(small), _longest(large))
    sample = plain_sample(small, folders, text=request.text, tokens=tokens, rows=ROWS)
    inputs, seen = model_inputs(sample.batch)
    with jax.default_matmul_precision("highest"):
        source, grown = (
            attention_probabilities(build_model(saved.config), saved.params, **inputs)
            for saved in (small, large)
        )
    donors = None if plan is None else head_donors(plan)
    comparison = compare_heads(source, grown, seen=seen, donors=donors)
    reporter.note(f"mean similarity of attention rows on {sample.name}:")
    for line in comparison.describe().splitlines():
        reporter.note(f"  {line}")

    length = int(seen[0].sum())
    words = _words(folders, small, np.asarray(sample.batch["input_ids"])[0, :length])
    contents: dict[str, str | bytes] = {}
    for name, probabilities, folder, found in (
        (request.names[0], source, folders[0], None),
        (request.names[1], grown, folders[1], comparison),
    ):
        drawn = np.asarray(probabilities)[:, 0, :, :length, :length]
        figure = attention_figure(
            drawn,
            title=f"{name}: {os.path.basename(os.path.abspath(folder))}",
            layers=_chosen(request.layers, drawn.shape[0]),
            heads=_chosen(request.heads, drawn.shape[1]),
            comparison=found,
            words=words,
        )
        contents[f"{name}.png"] = png_bytes(figure)
    table = "similarity" if request.names[1] == "grown" else f"similarity_{request.names[1]}"
    contents[f"{table}.csv"] = csv_table(comparison)
    written = write_files(request.out or _beside(folders[1]), contents)
    reporter.note("written: " + ", ".join(map(str, written)))


def _check(
    request: AttentionRequest, small: SavedModel, large: SavedModel, plan: GrowthPlan | None
) -> None:
    """Make sure that both models can read one text, and have what is to be drawn.

    Raises:
        ConfigError: lists everything that they do not agree in, or lack.
    """
    before, after = small.config, large.config
    problems = []
    if before.family != after.family:
        problems.append(
            f"family: {before.family} in the first, {after.family} in the second; attention is "
            "compared on the same tokens"
        )
    # A grown vocabulary starts with the source's; any other of another size is another one.
    kept = plan is not None and plan.maps["vocab"].starts_with_identity
    if before.vocab_size != after.vocab_size and not kept:
        problems.append(
            f"vocab_size: {before.vocab_size} in the first, {after.vocab_size} in the second; "
            "expected models that read the same tokens"
        )
    lacking = (
        ("--layers", request.layers, after.num_hidden_layers),
        ("--heads", request.heads, after.num_attention_heads),
    )
    for name, chosen, size in lacking:
        wrong = [number for number in chosen if number >= size]
        if wrong:
            problems.append(f"{name}: found {wrong}, expected some of 0 to {size - 1}")
    if request.tokens < 3:
        problems.append(f"--tokens: found {request.tokens}, expected at least 3")
    raise_problems(f"The attention of {' and '.join(request.folders)} cannot be drawn", problems)


def _note_origin(
    large: SavedModel,
    small: SavedModel,
    plan: GrowthPlan | None,
    folders: Sequence[str],
    *,
    reporter: Reporter,
) -> None:
    """Say what stands between the two models."""
    lineage = large.meta.get("lineage", {})
    if plan is None:
        reason = "its growth plan is of other models" if "growth_plan" in lineage else "no plan"
        reporter.note(f"{folders[1]}: {reason}; donors unknown, only the closest heads are found")
        return
    made = lineage.get("source_fingerprint", small.fingerprint)
    # Of a Hugging Face folder the lineage keeps the fingerprint of the files.
    if made != small.fingerprint and not is_hf_folder(folders[0]):
        reporter.note(f"{folders[0]}: other weights than those that {folders[1]} was grown from")
    trained = f", then trained for {large.step} steps" if "progress" in large.meta else ""
    reporter.note(f"{folders[1]}: grown by {plan.method}{trained}")


def _longest(saved: SavedModel) -> int:
    return saved.config.max_position_embeddings - saved.config.position_offset


def _beside(folder: str) -> Path:
    whole = Path(os.path.abspath(folder))
    return Path(os.path.relpath(whole.with_name(f"{whole.name}_attention")))


def _chosen(wanted: Sequence[int], size: int) -> tuple[int, ...]:
    """What the model has of it: the source is smaller; if that is nothing, all."""
    return tuple(number for number in wanted if number < size) or tuple(range(size))


def _words(folders: Sequence[str], saved: SavedModel, ids: Any) -> tuple[str, ...]:
    """The tokens in letters, if a tokenizer lies somewhere."""
    try:
        tokenizer = load_tokenizer(tokenizer_folder(folders, [saved]))
    except DataError:
        return ()
    letters = (tokenizer.decode([int(number)], skip_special_tokens=False) for number in ids)
    return tuple(word.strip() or "_" for word in letters)
