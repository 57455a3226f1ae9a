"""State of optimizers: exact when it is saved and loaded, made at the right time, and not moved by a skipped step."""

import copy
import pickle

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from rlhf.optim import AdaBelief, AuON, Frugal, build_param_groups
from tests.optim.resumed_runs import CASES, STEPS, Run, assert_same_run
from tests.processes import output_of, start

RULES = [name for name in CASES if name.endswith("-float32")]
HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_is_loaded_goes_on_bit_for_bit(name, tmp_path):
    straight = Run(name).train(0, 2 * STEPS)
    torch.save(Run(name).train(0, STEPS).saved(), tmp_path / "saved.pt")
    # nothing but tensors and numbers
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    assert_same_run(straight.saved(), Run(name).load(saved).train(STEPS, STEPS).saved())


@pytest.mark.parametrize("saved_after", [1, 2, 4])
@pytest.mark.parametrize("name", [name for name in RULES if name.startswith("frugal")])
def test_it_goes_on_also_from_the_border_of_an_epoch(name, saved_after):
    straight = Run(name).train(0, 5)
    saved = copy.deepcopy(Run(name).train(0, saved_after).saved())
    assert_same_run(straight.saved(), Run(name).load(saved).train(saved_after, 5 - saved_after).saved())


@pytest.mark.slow
def test_another_process_goes_on_bit_for_bit(tmp_path):
    for name in CASES:
        torch.save(Run(name).train(0, STEPS).saved(), tmp_path / f"{name}.pt")
    output_of(start("-m", "tests.optim.resumed_runs", tmp_path))
    for name in CASES:
        resumed = torch.load(tmp_path / f"{name}.resumed.pt", weights_only=True)
        assert_same_run(Run(name).train(0, 2 * STEPS).saved(), resumed)


def test_loading_keeps_every_dtype():
    weight = torch.nn.Parameter(torch.zeros(4, 4, dtype=HALF))
    settings = {"role": "split", "selector": "columns", "density": 0.5, "param_precision": "split16"}

    def optimizer():
        return Frugal([("weight", weight)], **settings)

    first = optimizer()
    weight.grad = torch.ones_like(weight)
    first.step()
    state = first.state[weight]
    state["exp_avg"][0, 0], state["lines"][1] = 1.2345678, 100001
    second = optimizer()
    second.load_state_dict(first.state_dict())
    loaded = second.state[weight]
    assert {name: value.dtype for name, value in loaded.items()} == {name: value.dtype for name, value in state.items()}
    assert float(loaded["exp_avg"][0, 0]) == 1.2345677614212036 and int(loaded["lines"][1]) == 100001
    assert loaded["param_residual"].dtype == torch.int16 and loaded["step"].dtype == SINGLE
    # a copy: the first optimizer goes on by itself
    state["exp_avg"].zero_()
    assert float(loaded["exp_avg"][0, 0]) == 1.2345677614212036


@pytest.mark.parametrize("name", RULES)
def test_an_empty_round_trip_changes_nothing(name):
    run, before = Run(name), torch.random.get_rng_state()
    run.optimizer.load_state_dict(run.optimizer.state_dict())
    assert not run.optimizer.state and torch.equal(torch.random.get_rng_state(), before)
    assert_same_run(run.train(0, 2).saved(), Run(name).train(0, 2).saved())


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith(("-float32", "-split16"))])
def test_a_step_of_zeros_makes_state_and_leaves_no_trace(name):
    run = Run(name)
    for parameter in run.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0
    run.optimizer.step()
    for key, weight in Run(name).weights().items():
        assert torch.equal(run.parameters[key], weight)
        state = run.optimizer.state[run.parameters[key]]
        assert float(state["step"]) == 0 and float(state.get("updates", 0)) == 0
    for group in run.optimizer.param_groups:
        group["lr"] = 1e-2
    assert_same_run(run.train(0, STEPS).saved(), Run(name).train(0, STEPS).saved())


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.hidden, self.out = torch.nn.Embedding(9, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    def forward(self, tokens):
        return self.out(self.hidden(self.embed(tokens)).relu()).square().mean()


KINDS = {
    "adabelief": (AdaBelief, {}),
    "frugal": (Frugal, {"density": 0.5, "update_gap": 2, "selector": "columns"}),
    "auon": (AuON, {"momentum": 0.9}),
}


def built(kind, model=None, **changes):
    model = model or Model()
    optimizer_class, settings = KINDS[kind]
    groups = build_param_groups(model, optimizer=kind, weight_decay=0.1, min_split_numel=0, min_split_dim=0)
    return model, optimizer_class(groups, **{"lr": 1e-2} | settings | changes)


def train(model, optimizer, steps):
    for step in range(steps):
        optimizer.zero_grad()
        model((torch.arange(6) + step) % 9).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_torchs_distributed_checkpoint_gets_and_sets_it(kind):
    model, optimizer = built(kind)
    train(model, optimizer, 3)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    weights = copy.deepcopy(model.state_dict())
    train(model, optimizer, 3)
    other, other_optimizer = built(kind)
    other.load_state_dict(weights)
    # makes state by a step of zeros, and then fills it
    set_optimizer_state_dict(other, other_optimizer, saved)
    train(other, other_optimizer, 3)
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])  # noqa: S301
def test_a_copy_goes_on_by_itself(kind, copied):
    model, optimizer = built(kind)
    train(model, optimizer, 3)
    other, other_optimizer = copied((model, optimizer))
    train(model, optimizer, 3)
    train(other, other_optimizer, 3)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert one is not two and torch.equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_a_closure_is_called_with_gradients_on_and_its_loss_returned(kind):
    model, optimizer = built(kind)
    other, other_optimizer = built(kind)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.arange(6))
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    train(other, other_optimizer, 1)
    assert float(loss.detach()) == float(Model()(torch.arange(6)).detach())
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_scheduler_sets_the_learning_rate_of_each_step(kind):
    model, optimizer = built(kind)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=4)
    other, other_optimizer = built(kind)
    for step in range(4):
        for group in other_optimizer.param_groups:
            # a learning rate may be a tensor
            group["lr"] = torch.tensor(1e-2 * (0.1 + 0.9 * step / 4), dtype=DOUBLE)
        train(model, optimizer, 1)
        train(other, other_optimizer, 1)
        scheduler.step()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-8)
    assert all(group["initial_lr"] == 1e-2 for group in optimizer.state_dict()["param_groups"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_moves_nothing(kind, bad):
    model, optimizer = built(kind)
    model(torch.arange(6)).backward()
    model.out.bias.grad[3] = bad
    optimizer.step()
    assert not optimizer.state
    optimizer.zero_grad()
    train(model, optimizer, 3)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    model.embed.weight.grad[0, 0] = bad
    optimizer.step()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[0][name])
    for index, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, before[1]["state"][index][name]) for name, value in state.items())


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_only_looked_for_where_it_is_to_be_skipped(kind):
    model, optimizer = built(kind, skip_nonfinite=False)
    model(torch.arange(6)).backward()
    model.out.bias.grad[3] = float("nan")
    before = model.hidden.weight.detach().clone()
    optimizer.step()
    assert model.out.bias.isnan()[3] and not torch.equal(model.hidden.weight, before)


def test_large_gradients_in_float16_are_finite():
    weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.float16))
    # their norm is not, in float16
    weight.grad = torch.full((4,), 6e4, dtype=torch.float16)
    AdaBelief([weight], lr=1e-2).step()
    assert (weight < 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_that_is_added_later_starts_at_its_own_first_step(kind):
    model, optimizer = built(kind)
    train(model, optimizer, 3)
    late = torch.nn.Parameter(torch.zeros(5))
    optimizer.add_param_group({"params": [("late", late)], "role": "full", "weight_decay": 0.0})
    late.grad = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0])
    optimizer.step()
    assert float(optimizer.state[late]["step"]) == 1
    first = 1e-2 / 0.9 if kind == "adabelief" else 1e-2
    torch.testing.assert_close(late.detach(), -first * late.grad.sign(), rtol=1e-5, atol=0)


def test_parameters_without_names_are_rounded_by_numbers_of_their_own():
    parameters = [torch.nn.Parameter(torch.ones(1000, dtype=HALF)) for _ in range(3)]
    groups = [{"params": parameters[:2]}, {"params": parameters[2:]}]
    optimizer = AdaBelief(groups, lr=1e-3, param_precision="sr")
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for one, other in ((0, 1), (0, 2), (1, 2)):
        share = float((parameters[one] == parameters[other]).double().mean())
        # steps of 1.1e-3 between neighbours 3.9e-3 apart: alike by chance in 59 % of the elements
        assert share == pytest.approx(0.59, abs=0.08)


def test_moments_of_one_value_are_rounded_each_by_chances_of_its_own():
    weight = torch.nn.Parameter(torch.zeros(4000))
    optimizer = Frugal([weight], betas=(0.9, 0.9), state_dtype="bfloat16", impl="foreach")
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    first, second = (optimizer.state[weight][name].float() for name in ("exp_avg", "exp_avg_sq"))
    lower, upper = 0.099609375, 0.10009765625
    share = (0.1 - lower) / (upper - lower)
    for moment in (first, second):
        assert set(moment.tolist()) == {lower, upper}
        assert float((moment == upper).double().mean()) == pytest.approx(share, abs=0.03)
    assert float((first == second).double().mean()) == pytest.approx(share**2 + (1 - share) ** 2, abs=0.03)


def test_state_of_float64_parameters_is_float64():
    weight = torch.nn.Parameter(torch.zeros(5000, dtype=DOUBLE))
    weight.grad = torch.ones_like(weight)
    for state_dtype in ("float32", "bfloat16", "8bit"):
        optimizer = AdaBelief([weight], state_dtype=state_dtype)
        optimizer.step()
        assert optimizer.state[weight]["exp_avg"].dtype == DOUBLE


@pytest.mark.parametrize(
    ("dtype", "precision", "message"),
    [
        (SINGLE, "sr", "param_precision 'sr' is for bfloat16, got torch.float32: use 'native'"),
        (torch.float16, "split16", "param_precision 'split16' is for bfloat16 parameters, got torch.float16"),
    ],
)
def test_a_precision_that_does_not_fit_the_weights_is_refused(dtype, precision, message):
    weight = torch.nn.Parameter(torch.zeros(4, dtype=dtype))
    weight.grad = torch.ones_like(weight)
    with pytest.raises(ValueError, match=message):
        AdaBelief([weight], param_precision=precision).step()
