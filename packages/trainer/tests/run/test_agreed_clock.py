import time

from fulmen.trainer.run.agreed_clock import AgreedClock


class Pair:
    """Two processes in lockstep: what rank zero broadcasts is what rank one gets."""

    def __init__(self):
        self.said = None
        self.num_broadcasts = 0

    def of_rank(self, rank):
        outer = self

        class Strategy:
            def broadcast(self, obj, src=0):
                if rank == 0:
                    outer.said, outer.num_broadcasts = obj, outer.num_broadcasts + 1
                assert outer.said is not None, "rank one asked when rank zero did not"
                said = outer.said
                if rank == 1:
                    outer.said = None
                return said

        return Strategy()


def test_all_get_the_answer_of_rank_zero_and_few_steps_cost_a_collective():
    pair, clocks = Pair(), (AgreedClock(), AgreedClock())
    deadline_s = time.monotonic() + 0.2
    num_steps = 0
    while True:
        num_steps += 1
        # The clock of rank one is an hour fast.
        answers = [
            clock.is_over(deadline_s - 3600 * rank - time.monotonic(), pair.of_rank(rank), 2)
            for rank, clock in enumerate(clocks)
        ]
        assert answers[0] == answers[1]
        if answers[0]:
            break
    assert time.monotonic() - deadline_s < 10  # a busy machine may take its time
    assert pair.num_broadcasts < num_steps / 10


def test_one_process_asks_nobody():
    assert AgreedClock().is_over(0.0, None, 1)
    assert not AgreedClock().is_over(0.1, None, 1)
