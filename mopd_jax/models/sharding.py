"""The mesh, and one table from logical axis names to its axes.

Every parameter carries logical names (`models.decoder`), every activation that matters is
constrained by them (`constrain`). One device is a mesh of 1 x 1 x 1: the code is the same.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mopd_jax.config import MeshConfig
from mopd_jax.errors import ConfigError
from mopd_jax.kernels import HeadSharding

AXES = ("data", "fsdp", "tensor")

# Logical name -> mesh axes. Rows of a batch are spread over data and fsdp together; weights are
# stored in parts over fsdp (gathered when used) and computed in parts over tensor.
RULES: dict[str | None, Any] = {
    "rows": ("data", "fsdp"),
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "head_size": None,
    None: None,
}


def make_mesh(cfg: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Mesh (data, fsdp, tensor) over `devices`, by default all of them.

    Raises:
        ConfigError: if the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    inner = cfg.fsdp * cfg.tensor
    data = len(devices) // inner if cfg.data is None else cfg.data
    if data * inner != len(devices):
        raise ConfigError(
            f"mesh data={cfg.data} x fsdp={cfg.fsdp} x tensor={cfg.tensor} does not use the "
            f"{len(devices)} devices here exactly; set mesh.data to None and choose fsdp * "
            "tensor as a divisor of the device count"
        )
    shape = (data, cfg.fsdp, cfg.tensor)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def spec(*logical: str | None) -> PartitionSpec:
    """Logical names -> PartitionSpec, by `RULES`."""
    return PartitionSpec(*(RULES[name] for name in logical))


def rows(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose leading axis is P or N."""
    return NamedSharding(mesh, spec("rows"))


def row_shards(mesh: Mesh) -> int:
    """How many parts the leading axis of a batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def shardings(abstract: Any, axes: Any, mesh: Mesh) -> Any:
    """NamedShardings of a parameter tree.

    Args:
        abstract: pytree of shaped leaves.
        axes: the same tree with a tuple of logical names for each leaf.

    Raises:
        ConfigError: names the parameter whose size is not a multiple of its mesh axes.
    """

    def one(path: tuple, leaf: Any, names: tuple[str | None, ...]) -> NamedSharding:
        for size, name in zip(leaf.shape, names, strict=True):
            mesh_axes = RULES[name]
            if mesh_axes is None:
                continue
            mesh_axes = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes
            parts = math.prod(mesh.shape[a] for a in mesh_axes)
            if size % parts:
                raise ConfigError(
                    f"{jax.tree_util.keystr(path)} {leaf.shape}: axis {name!r} of size {size} "
                    f"cannot be split over {'*'.join(mesh_axes)}={parts}; choose "
                    f"mesh.{mesh_axes[-1]} as a divisor of {size}"
                )
        return NamedSharding(mesh, spec(*names))

    return jax.tree_util.tree_map_with_path(one, abstract, axes)


def head_sharding() -> HeadSharding | None:
    """How tokens and heads lie on the mesh in context, for the ops; None without one.

    The mesh must be in context (`jax.set_mesh`) where the step is traced: on sharded arrays
    without a mesh, the ops would gather the hidden states of all devices.
    """
    if jax.sharding.get_abstract_mesh().size <= 1:
        return None
    return HeadSharding(RULES["rows"], RULES["vocab"], RULES["embed"])


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Pins an activation's layout under `jax.set_mesh`; without a mesh, does nothing."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*logical))
