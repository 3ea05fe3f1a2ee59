"""A process of `test_moves`: a checkpoint as some mesh reads it, and its next two losses."""

import sys

STEPS = 2


def main() -> None:
    devices, path, step, out = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]

    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_default_matmul_precision", "highest")

    import numpy as np
    from jax.experimental import multihost_utils

    from b2b_jax.config import load_run_config
    from b2b_jax.data import prepare, train_batches
    from b2b_jax.train.checkpoint import Checkpoints
    from b2b_jax.train.processes import join_processes
    from b2b_jax.train.programs import Programs

    join_processes()
    config = load_run_config(path, sys.argv[5:])
    prepared = prepare(config.data)
    programs = Programs(config, prepared.tokenizer)
    checkpoints = Checkpoints(config.run_dir, config.checkpoint)
    state = checkpoints.restore(step, programs.abstract_state())
    position = checkpoints.meta(step)["data"]["next_step"]
    checkpoints.close()
    found = {"position": np.asarray(position)}
    for leaf_path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = f"state{jax.tree_util.keystr(leaf_path)}"
        found[name] = np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    shards = state.params["layers"]["mlp"]["up"]["kernel"].addressable_shards
    found["shard"] = np.asarray(shards[0].data.shape)
    batches = train_batches(
        prepared,
        sequence_length=config.train.sequence_length,
        layout="bert",
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        start_step=position,
        rows=programs.local_rows,
    )
    for index in range(position, position + STEPS):
        batch, sub = programs.put(next(batches)["input_ids"]), config.schedule.sub_model(index)
        whole = multihost_utils.process_allgather(batch, tiled=True)
        found[f"batch/{index}"] = np.asarray(whole)
        if not programs.is_compiled(sub):
            programs.compile_train_step(sub, state, batch)
        state, metrics = programs.train_step(sub)(state, batch)
        found[f"loss/{index}"] = np.asarray(float(metrics.loss.total) / float(metrics.loss.count))
    if jax.process_index() == 0:
        np.savez(out, **found)


if __name__ == "__main__":
    main()
