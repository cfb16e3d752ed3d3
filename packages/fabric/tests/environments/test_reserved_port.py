import copy
import gc
import os
import pickle
import socket
import sys

import pytest

from fulmen.fabric.environments.reserved_port import ReservedPort


def _is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
        return True


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is kept there")
@pytest.mark.parametrize("address", ["127.0.0.1", "node0"])
def test_nobody_else_can_listen_there_until_it_is_given_up(address):
    reserved = ReservedPort(address)
    descriptor = reserved.descriptor()
    assert not _is_free(reserved.number)
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)  # whoever took it is done
    assert not _is_free(reserved.number)


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is kept there")
def test_whoever_takes_it_listens_at_once():
    reserved = ReservedPort("127.0.0.1")
    with (
        socket.socket(fileno=reserved.descriptor()) as listening,
        socket.create_connection(("127.0.0.1", reserved.number), timeout=30),
    ):
        accepted, _ = listening.accept()
        accepted.close()


def test_a_copy_knows_the_number_and_keeps_nothing():
    reserved = ReservedPort("127.0.0.1")
    for other in (pickle.loads(pickle.dumps(reserved)), copy.deepcopy(reserved)):
        assert other.number == reserved.number
        assert other.descriptor() is None


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors as Linux shows them")
def test_nothing_is_left_open():
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    ports = [ReservedPort("127.0.0.1") for _ in range(50)]
    assert len({port.number for port in ports}) == 50
    assert len(os.listdir("/proc/self/fd")) == before + 50
    del ports
    assert len(os.listdir("/proc/self/fd")) == before
