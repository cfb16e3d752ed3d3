import pytest
import torch

from fulmen.trainer.optimization.step import OptimizerStep


class Lines:
    """Stands for strategy, hooks and precision, and writes down what is called."""

    def __init__(self, scales):
        self.lines, self.scales_loss, self.precision_plugin = [], scales, self

    def on_before_optimizer_step(self, optimizer):
        self.lines.append("before")

    def clip(self, optimizer):
        self.lines.append("clip")

    def unscale_gradients(self, optimizer):
        self.lines.append("unscale")

    def optimizer_step(self, optimizer, closure=None, **kwargs):
        answer = None if closure is None else [closure() for _ in range(kwargs.get("times", 1))][-1]
        self.lines.append("step")
        return answer

    def closure(self, loss=1.0):
        def compute():
            self.lines.append("closure")
            return loss

        return compute


def make(scales, clips=True, automatic=True):
    lines = Lines(scales)
    return lines, OptimizerStep(lines, lines, lines.clip if clips else None, automatic=automatic)


def test_without_scaling_the_optimizer_calls_the_closure_as_often_as_it_likes():
    lines, step = make(scales=False)
    assert step(None, lines.closure(), {"times": 2}) == 1.0
    assert lines.lines == ["closure", "before", "clip"] * 2 + ["step"]


def test_with_scaling_gradients_are_unscaled_between_closure_and_clipping():
    lines, step = make(scales=True)
    assert step(None, lines.closure(), {}) == 1.0
    assert lines.lines == ["closure", "unscale", "before", "clip", "step"]


@pytest.mark.parametrize("scales", [True, False])
def test_a_step_needs_no_closure_and_no_clipping(scales):
    lines, step = make(scales, clips=False, automatic=False)
    assert not step.clips
    step(None, None, {})
    assert lines.lines == [*(["unscale"] if scales else []), "before", "step"]


def test_with_scaling_a_batch_without_a_loss_makes_no_step():
    lines, step = make(scales=True)
    assert step(None, lines.closure(loss=None), {}) is None
    assert "step" not in lines.lines


def test_real_parts_clip_what_the_optimizer_steps_on(quick):
    from fulmen.trainer.demos import BoringModel

    class Watching(BoringModel):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            gradients = torch.cat([parameter.grad.flatten() for parameter in self.parameters()])
            self.seen = gradients.norm().item(), gradients.abs().max().item()

    for algorithm, place in (("norm", 0), ("value", 1)):
        module = Watching()
        quick(
            gradient_clip_val=1e-3, gradient_clip_algorithm=algorithm, limit_train_batches=1, limit_val_batches=0
        ).fit(module)
        assert module.seen[place] == pytest.approx(1e-3, rel=1e-3)
