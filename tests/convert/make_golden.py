"""Write golden/: small models as transformers writes them, with what they compute.

To renew it, with torch and transformers: `python tests/convert/make_golden.py`.
"""

import shutil
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).with_name("golden")
# Constants away from their defaults: one that is not read, or read as another, shows.
MODELS = {
    "BertForPreTraining": {"hidden_act": "gelu_new", "layer_norm_eps": 0.03},
    "BertForSequenceClassification": {"type_vocab_size": 3, "layer_norm_eps": 0.02},
    "BertForQuestionAnswering": {"hidden_act": "relu", "layer_norm_eps": 0.05},
    "RobertaForMaskedLM": {"pad_token_id": 2, "layer_norm_eps": 0.04},
    "GPT2LMHeadModel": {"activation_function": "gelu", "layer_norm_epsilon": 0.06},
}
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def main() -> None:
    import reference

    import b2b_jax as b2b

    shutil.rmtree(GOLDEN, ignore_errors=True)
    for name, changes in MODELS.items():
        folder = reference.folder(GOLDEN / name, name, **changes)
        fields = reference.batch(b2b.load(folder)[0])
        outputs = reference.theirs(reference.build(name, **changes), fields)
        arrays = {**fields, **{output: tensor.numpy() for output, tensor in outputs.items()}}
        np.savez_compressed(folder / "expected.npz", **arrays)


if __name__ == "__main__":
    main()
