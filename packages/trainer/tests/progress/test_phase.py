from fulmen.trainer.progress.phase import Phase


def test_a_phase_is_the_number_of_counters_it_has_moved():
    assert list(Phase) == [0, 1, 2, 3]
    assert [phase.name for phase in Phase] == ["IDLE", "READY", "STARTED", "PROCESSED"]
