"""Configuration: strict, explained, overridable, all problems at once."""

from pathlib import Path

import pytest
import yaml

from b2b_jax.compare import load_compare_config
from b2b_jax.config import build, load_run_config, load_target, model_from_values, read_yaml
from b2b_jax.models import ConfigError, ModelConfig, preset
from b2b_jax.train.config import RunConfig

CONFIGS = Path(__file__).parent.parent / "configs"


def write(path: Path, content) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def errors_of(tmp_path: Path, content, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_run_config(write(tmp_path / "run.yaml", content), overrides)
    return str(error.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: p.name)
def test_every_config_of_the_repository_is_valid(path):
    if path.parent.name == "compare":
        load_compare_config(path)
        return
    values = read_yaml(path)
    if values.get("init"):  # a run that starts from a folder takes that folder's model
        values["model"] = read_yaml(CONFIGS / "demo" / "target.yaml")["model"]
    model, problems = model_from_values(values.pop("model", {"preset": "bert-tiny"}))
    config, found = build(RunConfig, values, base=RunConfig(model=model))
    assert problems + found + model.problems() == []
    if config.run_dir:  # the others are parts that runs extend
        assert config.problems() == []


def test_yaml_holds_differences_and_extends(tmp_path):
    write(tmp_path / "base.yaml", "train: {steps: 7, batch_size: 8}\nmodel: {preset: bert-tiny}")
    run = write(
        tmp_path / "run.yaml",
        "extends: base.yaml\nrun_dir: x\n"
        "optimizer: {warmup_steps: 2, peak_learning_rate: 2e-3}\n"
        "train: {batch_size: 4, sequence_length: 32, steps: 7}",
    )
    config = load_run_config(run)
    assert (config.train.steps, config.train.batch_size) == (7, 4)
    assert config.optimizer.peak_learning_rate == 2e-3  # text to YAML 1.1
    assert config.model == preset("bert-tiny")


def test_a_field_that_is_given_twice_is_named_with_both_lines(tmp_path):
    run = write(tmp_path / "run.yaml", "train: {steps: 7}\nrun_dir: x\ntrain: {batch_size: 4}")
    with pytest.raises(ConfigError, match=r"'train' stands in line 1 and again here(.|\n)*line 3"):
        load_run_config(run)


def test_a_field_twice_in_one_line_is_named_too(tmp_path):
    run = write(tmp_path / "run.yaml", "run_dir: x\ntrain: {steps: 7, steps: 8}")
    with pytest.raises(ConfigError, match="'steps' stands in line 2 and again here"):
        load_run_config(run)


def test_fields_of_an_anchor_may_be_given_again_where_it_is_merged(tmp_path):
    run = write(
        tmp_path / "run.yaml",
        "run_dir: x\n"
        "model: {<<: {<<: &tiny {preset: bert-tiny, pad_token_id: 1}, pad_token_id: 2}}\n"
        "train: {<<: {steps: 3}, steps: 7}\noptimizer: {warmup_steps: 0}\n",
    )
    config = load_run_config(run)
    assert (config.train.steps, config.model.pad_token_id) == (7, 2)


@pytest.mark.parametrize("text", ["train: {steps: {{ steps }}}", "? [a, b]\n: 1"])
def test_keys_that_are_no_names_are_refused_without_a_trace(tmp_path, text):
    run = write(tmp_path / "run.yaml", f"run_dir: x\n{text}")
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_run_config(run)


def test_flags_override_any_field(tmp_path):
    run = write(tmp_path / "run.yaml", "run_dir: x\nmodel: {preset: bert-tiny}")
    flags = [
        "--train.steps",
        "20000",
        "--model.hidden_size",
        "64",
        "--two_stage.embeddings",
        "never",
        "--optimizer.peak-learning-rate",
        "3e-4",
    ]
    config = load_run_config(run, flags)
    assert config.train.steps == 20000
    assert config.model.hidden_size == 64
    assert config.two_stage.embeddings == "never"
    assert config.optimizer.peak_learning_rate == 3e-4


def test_unknown_keys_name_the_nearest(tmp_path):
    message = errors_of(tmp_path, {"run_dir": "x", "trian": {}, "train": {"stepz": 3}})
    assert "trian: unknown field; did you mean 'train'?" in message
    assert "train.stepz: unknown field; did you mean 'steps'?" in message


def test_wrong_types_name_field_value_and_type(tmp_path):
    message = errors_of(
        tmp_path,
        {
            "run_dir": "x",
            "train": {"steps": "many", "seed": True},
            "two_stage": {"embeddings": "sometimes"},
            "data": {"paths": "a.txt"},
            "optimizer": 3,
        },
    )
    assert "train.steps: found 'many', expected a whole number" in message
    assert "train.seed: found True" in message
    assert "two_stage.embeddings: found 'sometimes', expected one of 'first'" in message
    assert "data.paths: found 'a.txt', expected a list of text" in message
    assert "optimizer: found 3, expected a mapping of fields" in message


def test_impossible_combinations_are_all_named_before_anything_is_compiled(tmp_path):
    message = errors_of(
        tmp_path,
        {
            "run_dir": "x",
            "model": {"preset": "bert-tiny", "num_attention_heads": 5},
            "train": {
                "steps": 10,
                "sequence_length": 16,
                "masked_positions": 20,
                "batch_size": 6,
                "micro_batches": 4,
            },
            "optimizer": {"warmup_steps": 11},
            "two_stage": {"steps": 5, "layers_per_block": 3},
        },
    )
    for part in (
        "model.num_attention_heads: found 5, which does not divide hidden_size (128)",
        "train.masked_positions: found 20, expected 1 to 14",
        "train.micro_batches: found 4, expected a divisor of train.batch_size (6)",
        "optimizer.warmup_steps: found 11, expected 0 to 10",
        "two_stage.layers_per_block: found 3, expected a divisor of model.num_hidden_layers (4)",
    ):
        assert part in message


def test_sequences_longer_than_the_position_table(tmp_path):
    message = errors_of(
        tmp_path,
        {"run_dir": "x", "model": {"preset": "bert-tiny"}, "train": {"sequence_length": 256}},
    )
    assert "train.sequence_length: found 256, expected 4 to 128" in message


def test_unknown_preset_lists_the_presets(tmp_path):
    message = errors_of(tmp_path, {"run_dir": "x", "model": {"preset": "bert-huge"}})
    assert "bert-huge" in message and "bert-large" in message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("a: [", "is not YAML"),
        ("- 1\n- 2", "expected 'field: value'"),
        ("extends: run.yaml", "extends itself"),
        ("extends: nothing.yaml", "cannot be read"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, content, part):
    assert part in errors_of(tmp_path, content)


def test_targets_come_from_presets_and_files(tmp_path):
    source = ModelConfig(
        hidden_size=384, num_attention_heads=6, intermediate_size=1536, vocab_size=1000
    )
    target = load_target("bert-base", source)
    assert (target.hidden_size, target.vocab_size) == (768, 1000)
    path = write(
        tmp_path / "t.yaml", "hidden_size: 512\nnum_attention_heads: 8\nintermediate_size: 2048"
    )
    assert load_target(str(path), source).hidden_size == 512
    with pytest.raises(ConfigError, match="no preset is called 'bert-bass'"):
        load_target("bert-bass", source)
