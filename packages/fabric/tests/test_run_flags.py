import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.run_flags import NOTHING_SAID, VARIABLE, is_run_by_command, resolve, to_variable
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy

VALUES = {
    "accelerator": st.sampled_from(["cpu", "cuda"]),
    "strategy": st.sampled_from(["ddp", "fsdp"]),
    "devices": st.sampled_from(["2", "0,1"]),
    "num_nodes": st.integers(2, 4),
    "precision": st.sampled_from(["16-mixed", "64-true"]),
}
SOME = st.fixed_dictionaries({}, optional=VALUES)


def on_command_line(monkeypatch, **given):
    monkeypatch.setenv(VARIABLE, to_variable(given))


@given(SOME, SOME)
def test_script_and_command_line_fill_each_other_up_and_never_contradict(in_script, on_line):
    with pytest.MonkeyPatch.context() as patch:
        on_command_line(patch, **on_line)
        flags = {**NOTHING_SAID, **in_script}
        if any(name in on_line and on_line[name] != value for name, value in in_script.items()):
            with pytest.raises(ConfigurationError, match="contradicts"):
                resolve(flags)
        else:
            assert resolve(flags) == {**NOTHING_SAID, "devices": "1", **in_script, **on_line}


def test_without_the_command_the_script_decides(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not is_run_by_command()
    assert resolve(NOTHING_SAID) == NOTHING_SAID


@pytest.mark.parametrize(("in_script", "on_line"), [([0, 1], "0,1"), (2, "2"), ("2", "2")])
def test_the_same_devices_may_be_written_in_two_ways(in_script, on_line, monkeypatch):
    on_command_line(monkeypatch, devices=on_line)
    assert resolve({**NOTHING_SAID, "devices": in_script})["devices"] == in_script


def test_an_object_in_the_script_is_not_overruled(monkeypatch):
    on_command_line(monkeypatch, strategy="ddp")
    with pytest.raises(ConfigurationError) as raised:
        resolve({**NOTHING_SAID, "strategy": SingleDeviceStrategy()}, "MyFabric")
    assert str(raised.value).startswith(
        "`fulmen-fabric run --strategy ddp` contradicts MyFabric(strategy=SingleDeviceStrategy(...)) in the script."
    )
    assert str(raised.value).count(". ") >= 2
