import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.strategies.mesh_axes import (
    AXES,
    DATA,
    PIPELINE,
    REPLICATE,
    TENSOR,
    MeshSizes,
    every_mesh,
    mesh_sizes,
)

sizes = st.integers(1, 6)
meshes = st.tuples(st.integers(1, 3), *(sizes for _ in AXES[1:])).map(
    lambda found: MeshSizes(dict(zip(AXES, found, strict=True)))
)


@given(meshes)
def test_each_process_has_one_place_and_each_share_as_many_processes(mesh):
    ranks = range(mesh.world_size)
    places = [tuple(mesh.coordinates(rank).values()) for rank in ranks]
    assert places == sorted(set(places))  # neighbours differ along the innermost axis first
    assert math.prod(mesh.shape) == mesh.world_size
    shares = [mesh.data_rank(rank) for rank in ranks]
    alike = mesh.of(PIPELINE) * mesh.of(TENSOR)
    assert [shares.count(share) for share in range(mesh.num_data)] == [alike] * mesh.num_data
    assert all(mesh.coordinates(rank)[PIPELINE] == mesh.of(PIPELINE) - 1 for rank in mesh.distinct_ranks())
    assert [shares[rank] for rank in mesh.distinct_ranks()] == list(range(mesh.num_data))
    groups = mesh.groups_without_copies()
    assert sorted(rank for group in groups for rank in group) == list(range(mesh.world_size))
    for group in groups:
        places = [(shares[rank], mesh.coordinates(rank)[PIPELINE]) for rank in group]
        assert len(set(places)) == len(places) == mesh.num_data * mesh.of(PIPELINE)
    for rank in ranks:  # who sees the same data differs along the axes of tensors and of the pipeline alone
        place = mesh.coordinates(rank)
        first = rank - place[TENSOR] - place[PIPELINE] * mesh.world_size // mesh.of(PIPELINE)
        assert mesh.data_rank(rank) == mesh.data_rank(first)


@given(sizes, sizes, sizes, sizes, sizes)
def test_axes_hold_every_process_once_or_are_refused(replicate, data, tensor, num_nodes, num_processes):
    asked = {REPLICATE: replicate, DATA: data, TENSOR: tensor}
    if replicate * data * tensor == num_nodes * num_processes:
        assert mesh_sizes(asked, num_nodes, num_processes).sizes == {PIPELINE: 1, **asked}
    else:
        with pytest.raises(ConfigurationError, match=f"data_parallel_size={data}, tensor_parallel_size={tensor}"):
            mesh_sizes(asked, num_nodes, num_processes)


@given(sizes, sizes, st.booleans(), st.sampled_from([1, "auto"]))
def test_auto_fills_the_world_with_tensors_on_a_machine_and_replicas_between_them(nodes, processes, splits, replicate):
    asked = {REPLICATE: replicate, DATA: "auto", TENSOR: "auto"}
    mesh = mesh_sizes(asked, nodes, processes, splits_tensors=splits)
    assert mesh.world_size == nodes * processes
    assert not mesh.crosses_machines(TENSOR, processes)
    assert mesh.of(TENSOR) == (processes if splits else 1)
    assert mesh.of(REPLICATE) == (nodes if replicate == "auto" else 1)


@given(sizes, sizes)
def test_auto_is_what_the_other_axis_leaves(num_nodes, num_processes):
    world_size = num_nodes * num_processes
    for size in range(1, world_size + 1):
        for given_axis, other in ((TENSOR, DATA), (DATA, TENSOR), (REPLICATE, DATA), (DATA, REPLICATE)):
            asked = {given_axis: size, other: "auto"}
            if world_size % size:
                with pytest.raises(ConfigurationError, match="does not fit"):
                    mesh_sizes(asked, num_nodes, num_processes)
            else:
                assert mesh_sizes(asked, num_nodes, num_processes).of(other) == world_size // size


def test_a_mesh_that_does_not_fit_names_one_that_does():
    with pytest.raises(ConfigurationError) as raised:
        mesh_sizes({REPLICATE: 2, DATA: 2, TENSOR: 4}, 1, 8)
    assert str(raised.value) == (
        "ModelParallelStrategy(replicate_size=2, data_parallel_size=2, tensor_parallel_size=4) does not fit 8"
        " processes. Every process has one place in the mesh. Pass sizes whose product is 8, such as replicate_size=2,"
        " data_parallel_size=1, tensor_parallel_size=4, or other devices or num_nodes."
    )


def test_tensors_over_machines_are_seen():
    assert MeshSizes({REPLICATE: 1, DATA: 2, TENSOR: 4}).crosses_machines(TENSOR, 2)
    assert MeshSizes({REPLICATE: 1, DATA: 1, TENSOR: 6}).crosses_machines(TENSOR, 4)
    assert not MeshSizes({REPLICATE: 1, DATA: 4, TENSOR: 2}).crosses_machines(TENSOR, 4)
    assert MeshSizes({REPLICATE: 1, DATA: 4, TENSOR: 2}).crosses_machines(DATA, 4)


def test_the_axes_of_reference_are_always_there():
    assert MeshSizes({REPLICATE: 1, DATA: 1, TENSOR: 1}).names == (DATA, TENSOR)
    assert MeshSizes({REPLICATE: 2, DATA: 1, TENSOR: 1}).names == (REPLICATE, DATA, TENSOR)
    assert MeshSizes({PIPELINE: 2, REPLICATE: 2, DATA: 1, TENSOR: 1}).names == AXES


def test_every_mesh_is_made_once():
    found = [tuple(mesh.sizes.values()) for mesh in every_mesh(8)]
    assert len(found) == len(set(found)) == 10
    assert all(math.prod(one) == 8 for one in found)
