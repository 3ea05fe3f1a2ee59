"""The command line: messages and exit codes instead of traces, and growth end to end."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import yaml
from runs import Recorder, tiny_run

import b2b_jax as b2b
from b2b_jax import cli
from b2b_jax.cli import main
from b2b_jax.commands.train import train_command
from b2b_jax.train.programs import Programs
from b2b_jax.train.saved import read_meta


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    config = tiny_run(folder, "small")
    assert train_command(config, reporter=Recorder()).exit_code == 0
    target = {
        "hidden_size": 24,
        "num_attention_heads": 3,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
    }
    (folder / "target.yaml").write_text(yaml.safe_dump({"model": target}))
    return folder, config


def grow(folder, *words) -> int:
    source, target = str(folder / "small"), str(folder / "large")
    return main(["grow", source, target, "--to", str(folder / "target.yaml"), *words])


@pytest.mark.slow
def test_grow_train_and_plot(trained, capsys):
    folder, config = trained
    assert grow(folder, "--method", "fpi") == 0
    output = capsys.readouterr().out
    assert (
        "layer order: [0, 1, 0, 1]" in output and "held-out text, width and depth: loss" in output
    )
    cfg, params = b2b.load(folder / "large")
    assert (cfg.hidden_size, cfg.num_hidden_layers) == (24, 4)
    plan = b2b.GrowthPlan.from_json((folder / "large" / "growth_plan.json").read_text())
    _, small = b2b.load(folder / "small")
    expected = b2b.grow(small, plan)["layers"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(params["layers"]["mlp"]["up"]["kernel"], expected)

    assert grow(folder, "--method", "fpi") == 0
    assert "already; nothing to do" in capsys.readouterr().out
    assert grow(folder, "--method", "aki") == 1
    assert "pass --overwrite" in capsys.readouterr().err
    assert grow(folder, "--method", "aki", "--overwrite") == 0

    run = {
        **json.loads(json.dumps(config.to_dict())),
        "init": str(folder / "large"),
        "run_dir": str(folder / "b2b"),
    }
    del run["model"]
    (folder / "b2b.yaml").write_text(yaml.safe_dump(run))
    assert main(["train", str(folder / "b2b.yaml"), "--train.steps", "8"]) == 0
    assert (folder / "b2b" / "growth_plan.json").exists()
    scratch = dataclasses.replace(config, model=cfg, run_dir=str(folder / "scratch"))
    assert train_command(scratch, reporter=Recorder()).exit_code == 0
    capsys.readouterr()
    assert main(["plot", *map(str, sorted(folder.iterdir()))]) == 0
    output = capsys.readouterr().out
    assert "AKI + two-stage" in output and "scratch" in output and "skipped" in output
    assert (folder / "report.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "nothing.yaml"], "cannot be read"),
        (["grow", "nothing", "out", "--to", "bert-base"], "no such folder"),
        (["plot", "nothing"], "no such folder"),
        (["prepare", "nothing.yaml"], "cannot be read"),
    ],
)
def test_bad_input_ends_in_a_message(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err


def test_a_target_that_cannot_be_reached_says_all_reasons(trained, capsys):
    folder, _ = trained
    (folder / "bad.yaml").write_text("hidden_size: 8\nnum_attention_heads: 2\nnum_hidden_layers: 1")
    code = main(
        ["grow", str(folder / "small"), str(folder / "x"), "--to", str(folder / "bad.yaml")]
    )
    error = capsys.readouterr().err
    assert code == 1
    for part in ("embed shrinks: 16 -> 8", "layers shrinks: 2 -> 1", "head_dim: 8 -> 4"):
        assert part in error
    assert not (folder / "x").exists()


def test_folders_that_must_not_be_written(trained, capsys):
    folder, config = trained
    assert (
        main(["grow", str(folder / "small"), str(folder / "base"), "--to", "num_hidden_layers=4"])
        == 0
    )
    # A grown folder is no run, and a run is no place for a grown model.
    grown = dataclasses.replace(config, run_dir=str(folder / "base"))
    with pytest.raises(b2b.ConfigError, match="no run of b2b train wrote"):
        train_command(grown, reporter=Recorder())
    assert "Grown from" in (folder / "base" / "README.md").read_text()
    capsys.readouterr()
    words = ["grow", str(folder / "base"), str(folder / "small"), "--to", "num_hidden_layers=6"]
    assert main(words) == 1
    assert "pass --overwrite" in capsys.readouterr().err
    words[2] = str(folder / "base")
    assert main([*words, "--overwrite"]) == 1
    assert "is or holds the source" in capsys.readouterr().err


def test_the_cost_of_a_chain_is_that_of_all_its_models(trained):
    """small -> base -> large, where base is trained: large has cost both."""
    folder, config = trained
    (folder / "chain.yaml").write_text(yaml.safe_dump({"model": {"num_hidden_layers": 3}}))
    words = [
        "grow",
        str(folder / "small"),
        str(folder / "chain"),
        "--to",
        str(folder / "chain.yaml"),
    ]
    assert main(words) == 0
    run = json.loads(json.dumps(config.to_dict())) | {"run_dir": str(folder / "middle")}
    del run["model"]
    run["two_stage"]["steps"] = 0
    (folder / "middle.yaml").write_text(yaml.safe_dump(run))
    # The flag, too, decides which model is trained.
    init = ["--init", str(folder / "chain"), "--train.steps", "4"]
    assert main(["train", str(folder / "middle.yaml"), *init]) == 0
    words = ["grow", str(folder / "middle"), str(folder / "last"), "--to", "num_hidden_layers=5"]
    assert main(words) == 0

    def meta(name):
        return read_meta(folder / name)

    spent = [meta(name)["progress"]["flops"]["exact"] for name in ("small", "middle")]
    assert meta("last")["lineage"]["source_flops"]["exact"] == pytest.approx(sum(spent))
    seconds = [meta(name)["progress"]["seconds"] for name in ("small", "middle")]
    assert meta("last")["lineage"]["source_seconds"] == pytest.approx(sum(seconds))


@pytest.mark.slow
def test_a_resumed_run_keeps_its_origin_whatever_init_holds_by_now(trained):
    folder, config = trained
    (folder / "other.yaml").write_text(yaml.safe_dump({"model": {"num_hidden_layers": 4}}))
    words = [
        "grow",
        str(folder / "small"),
        str(folder / "seed"),
        "--to",
        str(folder / "other.yaml"),
    ]
    assert main([*words, "--method", "fpi"]) == 0
    cfg, _ = b2b.load(folder / "seed")
    run = dataclasses.replace(
        config, model=cfg, init=str(folder / "seed"), run_dir=str(folder / "resumed")
    )
    assert train_command(run, reporter=Recorder(signal_at=8)).exit_code == 75
    shutil.rmtree(folder / "seed")
    assert main([*words, "--method", "direct_copy"]) == 0
    assert train_command(run, reporter=Recorder()).exit_code == 0
    assert json.loads((folder / "resumed" / "lineage.json").read_text())["method"] == "fpi"
    assert read_meta(folder / "resumed")["lineage"]["method"] == "fpi"


@pytest.mark.parametrize("words", [[], ["growth"], ["plot"], ["plot", "a", "--nonsense"]])
def test_wrong_usage_exits_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "usage: b2b" in capsys.readouterr().err


def test_a_wrong_flag_names_the_nearest(trained, capsys):
    folder, config = trained
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(config.to_dict()))))
    with pytest.raises(SystemExit) as stop:
        main(["train", str(path), "--train.stepz", "3"])
    assert stop.value.code == 2
    assert "--train.steps" in "".join(capsys.readouterr())


def test_too_little_memory_on_a_device_is_a_message(tmp_path, capsys, monkeypatch):
    config = tiny_run(tmp_path, "large")
    path = tmp_path / "large.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(config.to_dict()))))

    def fail(*arguments, **words):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(Programs, "lower_train_step", fail)
    assert main(["train", str(path)]) == 1
    said = capsys.readouterr().err
    assert "a device has too little memory: RESOURCE_EXHAUSTED" in said and "dry-run" in said


@pytest.mark.parametrize("command", ["train", "prepare"])
def test_help_needs_no_configuration(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"usage: b2b {command}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as error:
        main([command])
    assert error.value.code == 2 and "required: config" in capsys.readouterr().err


def test_a_reader_that_has_ended_is_no_message(capsys, monkeypatch):
    def fail(options):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(cli, "_inspect", fail)
    assert main(["inspect", "folder"]) == 1
    assert capsys.readouterr().err == ""
