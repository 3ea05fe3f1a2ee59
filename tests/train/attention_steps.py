"""A process of `test_attention`: steps on pretended devices, facts about them as one JSON line.

`tpu TOPOLOGY RUN` compiles the whole model's step of a run, given as JSON, for machines by name;
`mesh SIZES` compares the gradients of two kernels on eight devices of this machine.
"""

import dataclasses
import functools
import json
import sys
import time
from typing import Any


def compiled(topology: str, run: dict[str, Any]) -> dict[str, Any]:
    from b2b_jax.commands.topology import parse_topology, prepare_compilers, topology_devices

    machine = parse_topology(topology)
    prepare_compilers(machine)
    from b2b_jax.commands.abstract import stand_in_tokenizer
    from b2b_jax.models import Compute, ModelConfig, preset
    from b2b_jax.train.config import RunConfig, TrainConfig
    from b2b_jax.train.programs import Programs
    from b2b_jax.train.sharding import MeshConfig
    from b2b_jax.train.stages import full_model

    model: ModelConfig = preset(run["preset"]).replace(
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **run.get("model", {})
    )
    config = RunConfig(
        run_dir="-",
        model=model,
        train=TrainConfig(**run["train"]),
        mesh=MeshConfig(**run["mesh"]),
        compute=Compute(dtype="bfloat16", **run.get("compute", {})),
    )
    devices = topology_devices(machine)
    programs = Programs(config, stand_in_tokenizer(model), devices=devices)
    before = time.monotonic()
    step = programs.lower_train_step(
        full_model(model.num_hidden_layers), programs.abstract_state(), programs.abstract_batch()
    ).compile()
    return {
        "kernel": programs.model.compute.attention,
        "custom calls": (step.as_text() or "").count('custom_call_target="tpu_custom_call"'),
        "temporary bytes": step.memory_analysis().temp_size_in_bytes,
        "seconds": round(time.monotonic() - before, 1),
    }


def on_a_mesh(sizes: dict[str, int]) -> dict[str, float]:
    import jax

    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_default_matmul_precision", "highest")

    import numpy as np
    from jax.experimental.pallas.ops.tpu import splash_attention
    from train_support import TOKENIZER, config, tokens

    from b2b_jax.train.config import RunConfig, TrainConfig
    from b2b_jax.train.objective import training_hidden
    from b2b_jax.train.programs import Programs
    from b2b_jax.train.sharding import MeshConfig
    from b2b_jax.train.stages import full_model
    from b2b_jax.tree import flatten

    splash_attention.make_splash_mha = functools.partial(  # pyright: ignore
        splash_attention.make_splash_mha, interpret=True
    )
    sizes_of_model = {
        "vocab_size": 72,
        "hidden_size": 16,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
    }
    run = RunConfig(
        run_dir="-",
        model=config(**sizes_of_model),
        train=TrainConfig(batch_size=8, sequence_length=128, masked_positions=20),
        mesh=MeshConfig(**sizes),
    )
    programs = Programs(run, TOKENIZER)
    params = programs.init_params()
    batch = programs.put(np.asarray(tokens(rows=8, length=128)))

    def gradients(kernel: str) -> dict[str, Any]:
        compute = dataclasses.replace(programs.model.compute, attention=kernel)
        model = dataclasses.replace(programs.model, compute=compute)

        def loss(params: Any, input_ids: Any) -> Any:
            hidden, decoder = training_hidden(
                params,
                params,
                example := programs.objective.example(input_ids, jax.random.key(0)),
                model=model,
                sub=full_model(2),
                dropout_key=None,
            )
            found = programs.vocabulary(
                hidden, decoder, labels=example.labels, weights=example.weights
            )
            return found.mean

        return flatten(jax.jit(jax.grad(loss))(params, batch))

    expected, found = gradients("xla"), gradients("splash")
    return {
        path: float(abs(found[path] - leaf).max() / abs(leaf).max())
        for path, leaf in expected.items()
        if "key/bias" not in path  # no kernel has more than rounding there
    }


if __name__ == "__main__":
    if sys.argv[1] == "tpu":
        print(json.dumps(compiled(sys.argv[2], json.loads(sys.argv[3]))))
    else:
        print(json.dumps(on_a_mesh(json.loads(sys.argv[2]))))
