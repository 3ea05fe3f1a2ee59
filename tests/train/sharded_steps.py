"""A process of `test_sharding`: a few steps and a growth on a mesh, written to an .npz file."""

import json
import sys


def main() -> None:
    devices, sizes, out = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]

    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_default_matmul_precision", "highest")

    import numpy as np
    from jax.experimental import multihost_utils
    from train_support import TOKENIZER, config, tokens

    from b2b_jax.growth import grow, plan_growth
    from b2b_jax.models import build_model
    from b2b_jax.train.checksums import tree_checksums
    from b2b_jax.train.config import RunConfig, TrainConfig
    from b2b_jax.train.objective import training_hidden
    from b2b_jax.train.optim import OptimizerConfig
    from b2b_jax.train.processes import join_processes
    from b2b_jax.train.programs import Programs
    from b2b_jax.train.sharding import MeshConfig, param_shardings
    from b2b_jax.train.stages import TwoStageConfig, full_model, sub_models
    from b2b_jax.tree import flatten, unflatten

    join_processes()
    small = config(vocab_size=72, hidden_size=16, num_attention_heads=4, intermediate_size=32)
    large = small.replace(hidden_size=32, num_attention_heads=8, intermediate_size=64)
    two_stage = TwoStageConfig(steps=2, layers_per_block=2)
    run = RunConfig(
        run_dir="-",
        model=large,
        train=TrainConfig(steps=10, batch_size=16, sequence_length=12, masked_positions=3),
        optimizer=OptimizerConfig(peak_learning_rate=1e-2, warmup_steps=2, adam_eps=1e-5),
        two_stage=two_stage,
        mesh=MeshConfig(**sizes),
    )
    programs = Programs(run, TOKENIZER)
    found = {}

    def keep(name, tree):
        for path, leaf in flatten(tree).items():
            found[f"{name}/{path}"] = multihost_utils.process_allgather(leaf, tiled=True)

    # The small model lies on the mesh as well; its growth makes the large one in its shards.
    rng = np.random.default_rng(0)
    source = build_model(small)
    where = param_shardings(source.axes, source.shapes, mesh=programs.mesh)
    values = {
        path: rng.normal(1.0 if source.axes[path].role == "norm_scale" else 0.0, 0.06, shape)
        for path, shape in source.shapes.items()
    }
    params = unflatten(
        {
            path: jax.make_array_from_callback(
                value.shape, where[path], lambda index, value=value: value[index].astype(np.float32)
            )
            for path, value in values.items()
        }
    )
    plan = plan_growth(small, large, method="aki", mapping="uniform", seed=3)
    grown = jax.jit(grow, static_argnums=1, out_shardings=programs.param_shardings)(params, plan)
    keep("grown", grown)
    for name, sums in tree_checksums(grown).items():
        found[f"grown/checksum {name}"] = np.asarray(sums)

    batch = programs.put(np.asarray(tokens(rows=16))[programs.local_rows])
    state = programs.create_state(grown)
    subs = [*sub_models(4, two_stage), full_model(4)]

    def gradient(live, input_ids):
        example = programs.objective.example(input_ids, jax.random.key(0))

        def loss(live):
            hidden, decoder = training_hidden(
                live, live, example, model=programs.model, sub=subs[-1], dropout_key=None
            )
            loss = programs.vocabulary(
                hidden, decoder, labels=example.labels, weights=example.weights
            )
            return loss.mean

        return jax.grad(loss)(live)

    keep("gradient", jax.jit(gradient)(state.params, batch))
    for index, sub in enumerate(subs):
        programs.compile_train_step(sub, state, batch)
        state, metrics = programs.train_step(sub)(state, batch)
        found[f"loss/{index}"] = np.asarray(float(metrics.loss.total) / float(metrics.loss.count))
    evaluated = programs.eval_step((2, 4))(state.params, batch, np.int32(1))
    found["heldout"] = np.asarray(evaluated.total)
    keep("trained", state.params)
    leaf = state.params["layers"]["mlp"]["up"]["kernel"]
    found["share/layers/mlp/up/kernel"] = leaf.addressable_shards[0].data.size / leaf.size
    moments = [
        entry
        for entry in jax.tree.leaves(state.opt_state)
        if getattr(entry, "shape", None) == leaf.shape
    ]
    found["share/moment"] = moments[0].addressable_shards[0].data.size / leaf.size
    found["draws"] = np.asarray([run.schedule.sub_model(step).depth for step in range(10)])
    if jax.process_index() == 0:
        np.savez(out, **found)


if __name__ == "__main__":
    main()
