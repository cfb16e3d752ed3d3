from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.loops.resume import Owed, resume
from fulmen.trainer.progress import legacy
from fulmen.trainer.progress.counts import FitCounts
from fulmen.trainer.progress.cursor import Cursor
from fulmen.trainer.progress.phase import Phase


class Power(Exception):
    """It fails."""


class Fit:
    """A fit reduced to its counting; its trace is every batch worked on and every validation."""

    def __init__(self, epochs, batches, *, fails_at=None):
        self.counts = FitCounts()
        self.epochs, self.batches, self.fails_at = epochs, batches, fails_at
        self.trace, self.moments = [], 0
        self.owed = Owed.NOTHING
        self.between = None  # as a checkpoint says it

    def hook(self):
        """User code runs: the moment at which a checkpoint may be written and the power fail."""
        self.moments += 1
        if self.moments == self.fails_at:
            raise Power

    def run(self):
        resumption = resume(self.counts, self.between)
        inside = resumption.inside_epoch
        while self.counts.epoch.total < self.epochs:
            if not inside:
                self.counts.begin_epoch()
                self.counts.epoch.ready()
                self.hook()
                self.counts.epoch.started()
            start = resumption.next_batch if inside else 0
            if inside and resumption.owed is not Owed.NOTHING:
                self.pay(start - 1, resumption.owed)
            for index in range(start, self.batches):
                self.batch(index)
            inside = False
            self.counts.epoch.processed()
            self.hook()
            self.counts.epoch.completed()
        return self

    def batch(self, index):
        cursor = self.counts.batch
        cursor.ready()
        self.hook()
        cursor.started()
        self.hook()
        cursor.processed()
        self.trace.append((self.counts.epoch.total, index))
        self.hook()
        cursor.completed()
        self.pay(index, Owed.ROW)

    def pay(self, index, owed):
        if owed >= Owed.ROW:
            self.trace.append((self.counts.epoch.total, index, "row"))
        if owed >= Owed.VALIDATION:
            self.owed = Owed.VALIDATION
            self.hook()
            self.trace.append((self.counts.epoch.total, index, "validated"))
            self.owed = Owed.COUNT
            self.hook()
        self.owed = Owed.NOTHING
        self.counts.stepped_batches += 1


@given(st.integers(1, 3), st.integers(1, 4), st.lists(st.integers(1, 40), max_size=4))
def test_stopped_and_resumed_anywhere_every_batch_is_done_once(epochs, batches, failures):
    whole = Fit(epochs, batches).run()
    saved, between, trace = legacy.write_fit(FitCounts()), None, []
    for fails_at in [*failures, None]:
        fit = Fit(epochs, batches, fails_at=fails_at)
        legacy.read_fit(fit.counts, saved)
        fit.between = between
        with suppress(Power):
            fit.run()
        saved, between = legacy.write_fit(fit.counts), fit.owed
        trace += fit.trace
    assert trace == whole.trace
    assert saved == legacy.write_fit(whole.counts)


cursors = st.builds(
    lambda total, done, phase: Cursor(total + done, done, phase), *[st.integers(0, 5)] * 2, st.sampled_from(Phase)
)


@given(cursors, cursors)
def test_every_position_settles_on_one_from_which_a_run_goes_on(epoch, batch):
    counts = FitCounts(epoch=epoch, batch=batch)
    before_epoch, before_batch = epoch.position, batch.position
    found = resume(counts)
    assert counts.batch.phase is Phase.IDLE
    assert counts.epoch.phase is (Phase.STARTED if found.inside_epoch else Phase.IDLE)
    assert counts.epoch.total - before_epoch.total == (before_epoch.phase is Phase.PROCESSED)
    assert counts.batch.total - before_batch.total in (0, 1)
    assert found.next_batch == (counts.batch.current if found.inside_epoch else 0)
    # A position that has settled stays.
    assert resume(counts).next_batch == found.next_batch


def test_what_follows_a_batch_is_done_only_where_it_was_not():
    after_hook = FitCounts(epoch=Cursor(1, 1, Phase.STARTED), batch=Cursor(5, 2, Phase.PROCESSED))
    assert resume(after_hook).owed is Owed.ROW
    assert after_hook.batch.current == 3
    between = FitCounts(epoch=Cursor(1, 1, Phase.STARTED), batch=Cursor(6, 3))
    for owed in Owed:
        assert resume(between, owed).owed is owed
    # A checkpoint that does not say it was written when a validation had ended.
    assert resume(between).owed is Owed.COUNT
    assert resume(FitCounts(epoch=Cursor(1, 1, Phase.STARTED), batch=Cursor(3, 0))).owed is Owed.NOTHING
