"""A process of `test_growth_on_mesh`: compiles growth for a mesh, prints what a device holds."""

import json
import math
import re
import sys


def main() -> None:
    preset, method = sys.argv[1:3]

    import jax

    jax.config.update("jax_num_cpu_devices", 8)

    import numpy as np
    from train_support import config

    from b2b_jax.growth import grow, plan_growth
    from b2b_jax.models import build_model
    from b2b_jax.train.sharding import MeshConfig, make_mesh, param_shardings
    from b2b_jax.tree import unflatten

    small = config(vocab_size=512, hidden_size=64, num_attention_heads=8, intermediate_size=256)
    large = small.replace(hidden_size=96, num_attention_heads=12, intermediate_size=384)
    mesh = make_mesh(MeshConfig(preset=preset))

    def abstract(cfg):
        model = build_model(cfg)
        where = param_shardings(model.axes, model.shapes, mesh=mesh)
        return {
            path: jax.ShapeDtypeStruct(shape, np.float32, sharding=where[path])
            for path, shape in model.shapes.items()
        }

    source, target = abstract(small), abstract(large)
    plan = plan_growth(small, large, method=method)
    where = unflatten({path: leaf.sharding for path, leaf in target.items()})
    program = jax.jit(grow, static_argnums=1, out_shardings=where)
    compiled = program.lower(unflatten(source), plan).compile()
    memory = compiled.memory_analysis()
    arrays = re.findall(r"\b(?:f32|s32|u32)\[([\d,]+)\]", compiled.as_text())
    matrices = [
        math.prod(target[path].shape)
        for path, axes in build_model(large).axes.items()
        if "embed" in axes.names and {"heads", "mlp", "vocab"} & set(axes.names)
    ]
    shares = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in target.values())
    print(
        json.dumps(
            {
                "outputs": memory.output_size_in_bytes,
                "shares": 4 * shares,
                "temporary": memory.temp_size_in_bytes,
                "largest_array": max(math.prod(map(int, sizes.split(","))) for sizes in arrays),
                "smallest_matrix": min(matrices),
            }
        )
    )


if __name__ == "__main__":
    main()
