"""Configs of comparisons: the repository's own, and what is wrong with others."""

import re
from fractions import Fraction

import pytest
from comparisons import CONFIGS, write_comparison, write_few

from b2b_jax.cli import main
from b2b_jax.commands.train import planned_cost
from b2b_jax.compare import METHODS, load_compare_config
from b2b_jax.models import ConfigError, preset


def problems(path) -> str:
    with pytest.raises(ConfigError) as error:
        load_compare_config(path)
    return str(error.value)


def test_the_papers_schedules_are_the_presets():
    shares = {name: (m.length, m.stage_one, m.stages, m.inherit) for name, m in METHODS.items()}
    assert shares["scratch"] == (1, 0, (), 0)
    assert shares["bert2bert"] == (1, Fraction(5, 40), (), 0)
    assert shares["stackbert"] == (1, 0, (Fraction(5, 40), Fraction(7, 40)), 0)
    assert shares["mslt"] == (Fraction(52, 40), 0, (Fraction(8, 40),) * 4, 0)
    assert shares["inherit"][3] == Fraction(55, 125)
    assert METHODS["inherit"].temperature == 2.0
    assert {name for name, m in METHODS.items() if not m.uses_source} == {
        "scratch",
        "stackbert",
        "mslt",
    }
    assert METHODS["net2net"].growth == "fpi"
    assert METHODS["net2net"].mapping == "uniform"
    assert METHODS["interpolate"].depth == "interpolate"


def test_fractions_become_steps_of_one_trainer():
    config = load_compare_config(CONFIGS / "tiny_ablations.yaml")
    runs = {entry.name: entry.run for entry in config.entries}
    assert runs["bert2bert"].two_stage.steps == 125
    assert runs["bert2bert"].two_stage.layers_per_block == 1
    assert runs["stage_one_20"].two_stage.steps == 500
    assert runs["stackbert"].progressive.stage_steps == (125, 175)
    assert runs["mslt"].progressive.stage_steps == (200,) * 4
    assert runs["mslt"].train.steps == 1300
    assert runs["inherit"].inherit.steps == 440
    assert config.entry("interpolate_small").source == "small"
    assert config.entry("scratch").source == config.entry("mslt").source == ""
    assert config.entry("inherit").source == "main"
    assert set(config.tables) == {"table2", "table3", "table4"}


def test_every_method_sees_the_same_data_and_evaluation():
    for name in ("tiny", "tiny_gpt", "small", "small_cpu", "paper", "paper_gpt"):
        config = load_compare_config(CONFIGS / f"{name}.yaml")
        runs = [entry.run for entry in config.entries] + [spec.run for spec in config.sources]
        assert len({run.data for run in runs}) == 1, name
        seen = {
            (t.batch_size, t.sequence_length, t.masked_positions, t.eval_every, t.eval_batches)
            for t in (run.train for run in runs)
        }
        assert len(seen) == 1, name


def test_the_papers_scale_costs_what_the_paper_says():
    config = load_compare_config(CONFIGS / "paper.yaml")
    assert config.target == preset("bert-base")
    costs = {entry.name: planned_cost(entry.run).electra for entry in config.entries}
    assert costs["scratch"] == pytest.approx(7.3e19, rel=1e-3)
    for name, saving in (("mslt", 10.70), ("stage_one_20", 25.44)):
        assert 100 * (1 - costs[name] / costs["scratch"]) == pytest.approx(saving, abs=0.005)
    gpt = load_compare_config(CONFIGS / "paper_gpt.yaml").entry("scratch").run
    assert planned_cost(gpt).electra == pytest.approx(4.9e19, rel=0.01)


def test_everything_that_is_wrong_is_said_at_once(tmp_path):
    path = write_few(
        tmp_path,
        {
            "akki": {},
            "aki": {"sources": "main"},
            "fpi": {"source": "main2"},
            "bert2bert": {"stage_one": "five", "learning_rate_of": "nothing"},
            "interpolate": {},
            "mslt": {"stages": ["1/3", "1/3", "1/3"]},
        },
        train_missing="maybe",
        tables={"one": {"methods": ["aki", "unheard"]}},
        colour="blue",
    )
    found = problems(path)
    for words in (
        "colour: unknown",
        "methods.akki: unknown method 'akki'",
        "did you mean 'aki'?",
        "methods.aki.sources: unknown; did you mean 'source'?",
        "methods.fpi.source: found 'main2', expected one of the sources: ['main']",
        "methods.bert2bert.stage_one: found 'five'",
        "methods.bert2bert.learning_rate_of: found 'nothing'",
        "methods.interpolate.depth: found 'interpolate', but source 'main' has as many layers",
        "parted in 3; model.num_hidden_layers (4)",
        "train_missing: found 'maybe', expected one of ['on', 'off']",
        "tables.one.methods: found ['aki', 'unheard']",
    ):
        assert words in found, words


def test_values_of_a_run_are_checked_with_their_place(tmp_path):
    path = write_comparison(
        tmp_path,
        base={"train": {"batch_size": 0}},
        methods={"aki": {"run": {"optimiser": {}}}},
        target={"num_attention_heads": 5},
        seeds=[1, 1],
    )
    found = problems(path)
    for words in (
        "methods.scratch.train.batch_size: found 0",
        "methods.aki.optimiser: unknown field; did you mean 'optimizer'?",
        "num_attention_heads",
        "seeds: found [1, 1], expected a list of different numbers",
    ):
        assert words in found, words


@pytest.mark.parametrize(
    "text",
    [
        "- a list",
        "methods: [aki]",
        "base: 3",
        "base: {train: 3}",
        "base: {train: {steps: abc}}",
        "base: {inherit: {steps: 3}}",
        "run_dir: [1]",
        "methods: {scratch: abc}",
        "methods: {scratch: 3}",
        "methods: {scratch: {run: [1]}}",
        "methods: {scratch: {run: {init: there}}}",
        "methods: {scratch: {run: {train: {seed: 3}}}}",
        "methods: {scratch: {run: {inherit: {steps: 10, teacher: X}}}}",
        "methods: {scratch: {run: {optimizer: {rate_scale: copies}}}}",
        "methods: {../../x: {method: scratch}}",
        "methods: {inherit: {top_k: .inf}}",
        "methods: {inherit: {top_k: -1}}",
        "methods: {inherit: {temperature: 0}}",
        "methods: {inherit: {inherit: 2}}",
        "methods: {inherit: {stage_one: 1/4}}",
        "methods: {stackbert: {stages: '12'}}",
        "methods: {bert2bert: {stage_one: 1/1000}}",
        "methods: {scratch: {peak_learning_rates: [-1]}}",
        "methods: {scratch: {peak_learning_rates: [.nan]}}",
        "sources: 3",
        "sources: {main: 3}",
        "sources: {main: {folder: 3}}",
        "sources: {main: {init: there}}",
        "target: {hidden_size: 40, num_attention_heads: 2}",
        "target: 3",
        "first_losses: 3",
        "first_losses: [3]",
        "first_losses: [{hidden_size: 8, num_attention_heads: 1}]",
        "tables: {t: {methods: 3}}",
        "tables: {t: 3}",
        "seeds: [.inf]",
        "seeds: [-1]",
        "seeds: [1.7]",
        "seeds: 3",
        "title: [1]",
    ],
)
def test_other_yaml_is_refused_with_words(tmp_path, text, capsys):
    path = write_few(tmp_path, {"scratch": {}, "aki": {}, "inherit": {}})
    (tmp_path / "other.yaml").write_text(f"extends: {path.name}\n{text}\n")
    if text.startswith("-"):
        (tmp_path / "other.yaml").write_text(text)
    assert main(["compare", str(tmp_path / "other.yaml")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("b2b: ")
    assert "Traceback" not in said


def test_the_documented_config_can_be_run(tmp_path):
    text = (CONFIGS.parents[1] / "docs" / "comparing.md").read_text()
    whole = next(
        block for block in re.findall(r"```yaml\n(.*?)```", text, re.S) if "run_dir" in block
    )
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("Words.")
    path = tmp_path / "documented.yaml"
    text = whole.replace("corpus/", f"{tmp_path}/corpus/")
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"sources.given.folder: runs/my-bert: no such folder"):
        load_compare_config(path)
    (tmp_path / "my-bert").mkdir()
    path.write_text(text.replace("runs/my-bert", str(tmp_path / "my-bert")))
    config = load_compare_config(path)
    assert [entry.name for entry in config.entries] == ["scratch", "aki", "bert2bert"]
