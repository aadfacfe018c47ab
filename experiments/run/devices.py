"""The devices of a run, arranged as its plan says."""

from typing import NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.run.plan import RunPlan
from gradmem_jax.checks import AUTOMATIC, require
from gradmem_jax.parallel import sharding
from gradmem_jax.trees import Params


class Devices(NamedTuple):
    """Where arrays live; see gradmem_jax/parallel/sharding.py.

    Attributes:
        mesh: all devices of all processes.
        batch: of arrays [B, ...].
        replicated: of arrays that every device has.
        names: what progress lines call them.
    """

    mesh: Mesh
    batch: NamedSharding
    replicated: NamedSharding
    names: list[str]

    def copy_to_first(self, params: Params) -> Params:
        """A copy of the parameters on the first device of each process."""
        whole = jax.jit(lambda params: params, out_shardings=self.replicated)(params)
        return jax.tree.map(lambda x: x.addressable_data(0), whole)


def find_devices(plan: RunPlan) -> Devices:
    """Arranges all devices as `plan.mesh` says.

    Raises:
        ValueError: they do not fit, or the batch does not divide over them.
    """
    mesh = sharding.make_mesh(plan.mesh)
    parts, micro = sharding.num_batch_shards(mesh), plan.num_micro_batches
    require(
        plan.batch_size % parts == 0,
        f"batch_size={plan.batch_size} must be a multiple of the {parts} parts that mesh.data="
        f"{mesh.shape['data']} x mesh.fsdp={mesh.shape['fsdp']} devices take.",
    )
    require(
        micro == AUTOMATIC or plan.batch_size // parts % micro == 0,
        f"each of the {parts} devices along mesh.data and mesh.fsdp gets {plan.batch_size} / "
        f"{parts} samples of batch_size={plan.batch_size}, which must be a multiple of "
        f"num_micro_batches={micro}; use fewer micro-batches or a larger batch.",
    )
    kinds = [device.device_kind for device in mesh.devices.flat]
    names = [f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))]
    batch = sharding.batch_sharding(mesh)
    sharding.process_shard(batch, plan.batch_size)
    return Devices(mesh, batch, NamedSharding(mesh, PartitionSpec()), names)
