from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerAction, schedule

from fulmen.trainer.profilers import ScheduleWrapper

KINDS = ["training_step", "validation_step", "test_step", "predict_step"]


@given(steps=st.lists(st.sampled_from(KINDS), max_size=40), wait=st.integers(0, 2), active=st.integers(1, 3))
def test_each_kind_of_step_sees_the_schedule_once_as_if_it_were_alone(steps, wait, active):
    windows = schedule(wait=wait, warmup=1, active=active)
    wrapped = ScheduleWrapper(windows)
    seen = {kind: [] for kind in KINDS}
    for number, kind in enumerate(steps):
        wrapped.pre_step(f"[Strategy]SingleDeviceStrategy.{kind}")
        assert [wrapped.is_training, wrapped.is_validating, wrapped.is_testing, wrapped.is_predicting] == [
            kind == one for one in KINDS
        ]
        seen[kind].append(wrapped(number))
    length = wait + 1 + active
    for kind, actions in seen.items():
        alone = [windows(step) if step < length else ProfilerAction.NONE for step in range(len(actions))]
        assert actions == alone
        wrapped.pre_step(kind)
        assert wrapped.has_finished == (len(actions) >= length)
    wrapped.reset()
    wrapped.setup("training_step")
    assert (wrapped.num_step, wrapped.has_finished) == (0, False)
