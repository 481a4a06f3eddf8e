"""The client API: a script receives, trains with the proximal term whatever its optimizer, and sends."""

import json
import math
import random
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer

from fedprox import federated

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randint(0, 3, (64,), generator=torch.Generator().manual_seed(2))


def net() -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


GLOBAL = {name: value + 0.1 for name, value in net().state_dict().items()}


@pytest.fixture(autouse=True)
def _without_task(monkeypatch) -> Iterator[None]:
    monkeypatch.delenv("RANK", raising=False)
    yield
    federated.begin(None)


@pytest.fixture
def begin(tmp_path) -> Callable[..., Any]:
    """Begin a task, and return what reads its answer."""
    count = iter(range(1000))

    def begin(weights: dict[str, torch.Tensor] = GLOBAL, **task: Any) -> Callable[[], Any]:
        folder = tmp_path / str(next(count))
        folder.mkdir()
        (folder / "task.json").write_text(json.dumps(task))
        save_file(weights, folder / "model.safetensors")
        federated.begin(str(folder))

        def answer() -> SimpleNamespace:
            facts, arrays = folder / "update.json", folder / "update.safetensors"
            return SimpleNamespace(
                facts=json.loads(facts.read_text()) if facts.exists() else None,
                arrays=load_file(arrays) if arrays.exists() else None,
            )

        return answer

    return begin


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([own.detach().flatten() for own in model.parameters()])


def proximal_term(model: nn.Module, mu: float) -> torch.Tensor:
    return mu / 2 * sum((own - GLOBAL[name]).square().sum() for name, own in model.named_parameters())


def train(
    model: nn.Module, optimizer: Optimizer, how: str = "plain", mu: float = 0.0, num_steps: int = 10, seed: int = 0
) -> None:
    """Do some steps; mu > 0 adds the proximal term to the loss, as one does without the hook."""
    scaler = torch.amp.GradScaler("cpu", enabled=how == "scaler", init_scale=1024.0)
    batches = np.random.default_rng(seed).integers(64, size=(num_steps, 16))
    for batch in batches:

        def closure(batch=batch) -> torch.Tensor:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(X[batch]), Y[batch])
            if mu:
                loss = loss + proximal_term(model, mu)
            scaler.scale(loss).backward()
            return loss

        if how == "closure":
            optimizer.step(closure)
        elif how == "named closure":
            optimizer.step(closure=closure)
        else:
            closure()
            scaler.step(optimizer)
            scaler.update()


# The proximal term.

OPTIMIZERS = {
    "SGD": (partial(SGD, lr=0.5), "plain"),
    "SGD with momentum and weight decay": (partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.01), "plain"),
    "Adam": (partial(Adam, lr=0.01), "plain"),
    "AdamW": (partial(AdamW, lr=0.01), "plain"),
    "SGD with a closure": (partial(SGD, lr=0.5), "closure"),
    "SGD with a named closure": (partial(SGD, lr=0.5), "named closure"),
    "SGD under a scaler": (partial(SGD, lr=0.5), "scaler"),
    "fused Adam under a scaler": (partial(Adam, lr=0.01, fused=True), "scaler"),
    "LBFGS": (partial(LBFGS, lr=0.5, max_iter=4), "closure"),
    "LBFGS with a line search": (partial(LBFGS, max_iter=4, line_search_fn="strong_wolfe"), "closure"),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mu=st.floats(0.01, 2.0), seed=st.integers(0, 1000))
def test_every_optimizer_steps_as_if_the_proximal_term_were_in_the_loss(begin, name, mu, seed):
    make, how = OPTIMIZERS[name]
    answer, received, expected, plain = begin(mu=mu), net(), net(), net()
    federated.receive(received)
    train(received, make(received.parameters()), how, seed=seed)
    federated.send(received, num_examples=64)
    for model, weight in ((expected, mu), (plain, 0.0)):  # without a task, so without the hook
        model.load_state_dict(GLOBAL)
        train(model, make(model.parameters()), how, weight, seed=seed)
    assert (flat(received) - flat(expected)).abs().max() < 1e-8  # float64; LBFGS makes much of sums in another order
    assert (flat(received) - flat(plain)).abs().max() > 1e-4
    assert answer().facts["num-steps"] == 10
    assert answer().facts["drift"] == pytest.approx(float((flat(expected) - flat_of(GLOBAL)).norm()), rel=1e-6)


def flat_of(state: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.flatten() for value in state.values()])


def test_without_mu_a_task_trains_as_the_script_does_alone(begin):
    begin(mu=0.0)
    received, alone = net(), net()
    federated.receive(received)
    train(received, SGD(received.parameters(), lr=0.5, momentum=0.9))
    federated.send(received, num_examples=64)
    alone.load_state_dict(GLOBAL)
    train(alone, SGD(alone.parameters(), lr=0.5, momentum=0.9))
    assert torch.equal(flat(received), flat(alone))


def test_a_parameter_that_the_loss_does_not_reach_in_a_step_is_pulled_all_the_same(begin):
    # f = a in the first step and b in the second; the term pulls a in the second step, where it has no gradient.
    mu, lr = 0.5, 0.1
    model = nn.ParameterDict({"a": nn.Parameter(torch.tensor(0.0)), "b": nn.Parameter(torch.tensor(0.0))})
    begin({"a": torch.tensor(3.0), "b": torch.tensor(-2.0)}, mu=mu)
    federated.receive(model)
    optimizer = SGD(model.parameters(), lr=lr)
    for name in ("a", "b"):
        optimizer.zero_grad()
        model[name].backward()
        optimizer.step()
    assert model["a"].item() == pytest.approx(3 - lr - lr * mu * (-lr))
    assert model["b"].item() == pytest.approx(-2 - lr)


class Within(Optimizer):
    """An optimizer that steps by another one, as Lookahead and SAM do."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner = inner

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


@pytest.mark.parametrize("how", ["plain", "closure"])
def test_an_optimizer_within_another_one_is_pulled_once(begin, how):
    models = [net(), net()]
    for model, wrap in zip(models, (lambda inner: inner, Within), strict=True):
        answer = begin(mu=1.0)
        federated.receive(model)
        train(model, wrap(SGD(model.parameters(), lr=0.1)), how)
        federated.send(model, num_examples=64)
        assert answer().facts["num-steps"] == 10
    assert torch.equal(*map(flat, models))


def test_sparse_gradients_are_refused_if_mu_is_above_0(begin):
    model = nn.Embedding(5, 2, sparse=True)
    begin(model.state_dict(), mu=0.1)
    federated.receive(model)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="dense gradients"):
        torch.optim.SparseAdam(model.parameters()).step()


def test_what_the_hook_adds_ends_with_the_task(begin):
    begin(mu=5.0)
    model, alone = net(), net()
    federated.receive(model)
    train(model, SGD(model.parameters(), lr=0.1), num_steps=1)
    federated.send(model, num_examples=64)
    alone.load_state_dict(model.state_dict())
    train(model, SGD(model.parameters(), lr=0.1))
    train(alone, SGD(alone.parameters(), lr=0.1))
    assert torch.equal(flat(model), flat(alone))


# Answers.


def trained(model: nn.Module) -> nn.Module:
    train(model, SGD(model.parameters(), lr=0.1), num_steps=1)
    return model


def test_the_answer_holds_the_trained_model_and_what_was_measured(begin):
    answer = begin(mu=0.1, num_epochs=3, client=2, name="hospital", data="/data")
    site = federated.init()
    assert (site.num_epochs, site.client, site.name, site.data) == (3, 2, "hospital", "/data")
    model = net()
    while federated.is_running():
        assert federated.receive(model) == site
        assert all(torch.equal(value, GLOBAL[name]) for name, value in model.state_dict().items())
        trained(model)
        federated.send(
            model, num_examples=np.int64(12), metrics={"train_loss": torch.tensor(0.5, requires_grad=True), "f1": 1}
        )
    facts, arrays = answer().facts, answer().arrays
    assert facts == {"num-examples": 12, "num-steps": 1, "drift": facts["drift"], "train-loss": 0.5, "f1": 1.0}
    assert facts["drift"] == pytest.approx(float((flat(model) - flat_of(GLOBAL)).norm()))
    assert all(torch.equal(arrays[name], value) for name, value in model.state_dict().items())


def test_a_script_on_its_own_runs_once_and_its_model_is_not_changed():
    model, before = net(), flat(net())
    rounds = 0
    while federated.is_running():
        rounds += 1
        task = federated.receive(model, evaluate=lambda model: 1 / 0)
        assert (task.kind, task.mu, task.learning_rate) == ("train", 0.0, None)
        assert torch.equal(flat(model), before)
        federated.send(model, num_examples=1)
    assert rounds == 1


def test_initial_weights_end_the_script_and_say_whether_it_evaluates(begin):
    for evaluate in (None, lambda model: {}):
        answer, model = begin(kind="initial"), net()
        with pytest.raises(SystemExit) as ended:
            federated.receive(model, evaluate)
        assert ended.value.code == 0
        assert answer().facts == {"evaluates": int(evaluate is not None)}
        assert all(torch.equal(answer().arrays[name], value) for name, value in net().state_dict().items())


def test_an_evaluation_measures_the_global_model_in_evaluation_mode_and_ends_the_script(begin):
    answer, model = begin(kind="evaluate"), net()

    def measured(given: nn.Module) -> dict[str, Any]:
        assert given is model
        assert not given.training
        assert torch.equal(flat(given), flat_of(GLOBAL))
        return {"accuracy": 0.5, "loss": torch.tensor(2.0), "num_examples": 10}

    with pytest.raises(SystemExit) as ended:
        federated.receive(model, evaluate=measured)
    assert ended.value.code == 0
    assert answer().facts == {"num-examples": 10, "accuracy": 0.5, "loss": 2.0}
    assert answer().arrays is None


def test_the_global_generators_are_seeded_by_the_task(begin):
    draws = []
    for seed in (1, 1, 2, 2**32 + 1):
        begin(seed=seed)
        draws.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert draws[0] == draws[1]
    assert not set(draws[0]) & set(draws[2])
    assert draws[3][0] != draws[0][0]


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda model: nn.DataParallel(torch.compile(model))])
def test_a_wrapped_model_counts_as_the_one_within(begin, wrap):
    answer, model = begin(mu=0.1), net()
    wrapped = wrap(model)
    federated.receive(wrapped)
    trained(model)
    federated.send(wrapped, num_examples=1)
    assert list(answer().arrays) == sorted(GLOBAL)


def test_a_copy_of_the_best_epoch_may_be_sent_and_bfloat16_is_sent_as_float32(begin):
    answer, model = begin(), net().bfloat16()
    federated.receive(model)
    model.double()
    trained(model)
    best = net().bfloat16()
    best.load_state_dict(model.state_dict())
    federated.send(best, num_examples=1)
    assert {value.dtype for value in answer().arrays.values()} == {torch.float32}


def test_tied_weights_come_back_under_both_names(begin):
    model = nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)})
    model["two"].weight = model["one"].weight
    answer = begin({name: value.clone() for name, value in model.state_dict().items()}, mu=0.1)
    federated.receive(model)
    optimizer = SGD(model.parameters(), lr=0.1)
    model["two"](model["one"](torch.ones(1, 2))).sum().backward()
    optimizer.step()
    federated.send(model, num_examples=1)
    assert torch.equal(answer().arrays["one.weight"], answer().arrays["two.weight"])


def test_only_the_first_of_several_processes_writes(begin, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    answer, model = begin(), net()
    federated.receive(model)
    federated.send(trained(model), num_examples=1)
    assert answer().facts is None
    assert not federated.is_running()


# Mistakes: one line each, with and without a task.


@pytest.fixture(params=["with a task", "alone"])
def anywhere(request, begin) -> None:
    if request.param == "with a task":
        begin()


@pytest.mark.usefixtures("anywhere")
def test_send_before_receive():
    with pytest.raises(RuntimeError, match=r"send\(\) before federated.receive\(\)"):
        federated.send(net(), num_examples=1)


@pytest.mark.usefixtures("anywhere")
def test_receive_twice():
    federated.receive(net())
    with pytest.raises(RuntimeError, match="called twice"):
        federated.receive(net())


@pytest.mark.usefixtures("anywhere")
def test_send_twice():
    model = net()
    federated.receive(model)
    federated.send(trained(model), num_examples=1)
    with pytest.raises(RuntimeError, match="called twice"):
        federated.send(model, num_examples=1)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("num_examples", [0, -1, 1.5, True, "3", None])
def test_a_number_of_examples_that_is_none(num_examples):
    model = net()
    federated.receive(model)
    trained(model)
    with pytest.raises(ValueError, match="num_examples must be an integer >= 1, got"):
        federated.send(model, num_examples=num_examples)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("metrics", [{"auc": "high"}, {"auc": None}, {"auc": torch.ones(2)}, {"drift": 1.0}, {3: 1.0}])
def test_metrics_that_are_not_numbers_by_free_names(metrics):
    model = net()
    federated.receive(model)
    trained(model)
    with pytest.raises(ValueError, match="metrics must"):
        federated.send(model, num_examples=1, metrics=metrics)


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_an_optimizer_of_another_model_than_was_received(begin, mu):
    begin(mu=mu)
    model, other = net(), net()
    federated.receive(other)
    trained(model)
    with pytest.raises(RuntimeError, match="the optimizer trains another model"):
        federated.send(model, num_examples=1)


def test_an_optimizer_of_another_model_besides_the_received_one_is_no_mistake(begin):
    begin(mu=0.5)
    model, teacher = net(), net()
    federated.receive(model)
    trained(teacher)
    federated.send(trained(model), num_examples=1)


@pytest.mark.parametrize("other", [nn.Linear(8, 3), nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))])
def test_sending_another_model_than_was_received(begin, other):
    begin()
    model = net()
    federated.receive(model)
    trained(model)
    with pytest.raises(RuntimeError, match="given another model than"):
        federated.send(other, num_examples=1)


def test_receiving_into_another_model_than_the_servers(begin):
    begin()
    with pytest.raises(RuntimeError, match="does not fit the model given to receive"):
        federated.receive(nn.Linear(8, 3))


def test_training_by_hand_is_refused_only_if_mu_is_above_0(begin):
    for mu in (0.0, 0.5):
        begin(mu=mu)
        model = net()
        federated.receive(model)
        functional.cross_entropy(model(X), Y).backward()
        with torch.no_grad():
            for own in model.parameters():
                own -= 0.1 * own.grad
        if mu:
            with pytest.raises(RuntimeError, match=r"mu=0.5, but no step of a torch optimizer was pulled"):
                federated.send(model, num_examples=1)
        else:
            federated.send(model, num_examples=1)


def test_sending_a_model_that_nothing_has_trained(begin):
    begin()
    model = net()
    federated.receive(model)
    with pytest.raises(RuntimeError, match="nothing has trained it"):
        federated.send(model, num_examples=1)


def test_an_evaluation_without_a_function(begin):
    begin(kind="evaluate")
    with pytest.raises(RuntimeError, match="no function evaluate="):
        federated.receive(net())


def test_a_model_that_is_sharded_over_processes_is_refused(begin):
    class FullyShardedDataParallel(nn.Module):
        """Stands for torch's, which needs a process group."""

    begin()
    with pytest.raises(RuntimeError, match="sharded over processes"):
        federated.receive(nn.Sequential(FullyShardedDataParallel()))


def test_a_parameter_that_is_sharded_by_fully_shard_is_refused(begin):
    class DTensor(torch.Tensor):
        """Stands for torch's, which needs a process group."""

    begin()
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(torch.ones(2, 2).as_subclass(DTensor))
    with pytest.raises(RuntimeError, match="sharded over processes"):
        federated.receive(model)


def test_a_state_that_no_message_can_hold(begin):
    begin(kind="initial")
    model = nn.Linear(2, 2)
    model.register_buffer("z", torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(RuntimeError, match="dense real tensors, but z is not"):
        federated.receive(model)


# Lightning.


@pytest.fixture(scope="module")
def lightning() -> Any:
    return pytest.importorskip("lightning")


@pytest.fixture
def module(lightning) -> Any:
    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def training_step(self, batch, _):
            loss = functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("train_loss", loss, on_step=False, on_epoch=True)
            return loss

        def validation_step(self, batch, _):
            self.log("val_accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self):
            return SGD(self.parameters(), lr=0.5)

    return Module()


@pytest.fixture
def patched(lightning) -> Any:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_epochs=3, accelerator="cpu", **quiet)
    federated.patch(trainer)
    return trainer


LIGHTNING_GLOBAL = {f"net.{name}": value for name, value in GLOBAL.items()}
LOADER = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=16)
# Lightning warns of few workers and of its own use of torch.
quietly = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def loop(trainer, module) -> None:
    while federated.is_running():
        trainer.validate(module, LOADER, verbose=False)
        trainer.fit(module, LOADER)


@quietly
def test_lightnings_fit_is_the_loop_with_the_proximal_term_in_the_loss(begin, module, patched):
    answer = begin(LIGHTNING_GLOBAL, mu=1.0)
    loop(patched, module)
    expected = net()
    expected.load_state_dict(GLOBAL)
    optimizer = SGD(expected.parameters(), lr=0.5)
    for _ in range(3):
        for x, y in LOADER:
            optimizer.zero_grad()
            (functional.cross_entropy(expected(x), y) + proximal_term(expected, 1.0)).backward()
            optimizer.step()
    assert (flat(module) - flat(expected)).abs().max() < 1e-12
    facts = answer().facts
    assert (facts["num-examples"], facts["num-steps"]) == (64, 12)
    assert math.isfinite(facts["train-loss"])


@quietly
def test_lightnings_validate_answers_an_evaluation(begin, module, patched):
    answer = begin(LIGHTNING_GLOBAL, kind="evaluate")
    with pytest.raises(SystemExit):
        loop(patched, module)
    model = net()
    model.load_state_dict(GLOBAL)
    accuracy = (model(X).argmax(1) == Y).float().mean().item()
    assert answer().facts == {"num-examples": 64, "accuracy": pytest.approx(accuracy)}


@quietly
def test_a_lightning_module_gives_the_initial_weights(begin, module, patched):
    answer = begin(kind="initial")
    with pytest.raises(SystemExit):
        loop(patched, module)
    assert answer().facts == {"evaluates": 1}
    assert set(answer().arrays) == set(LIGHTNING_GLOBAL)


@quietly
def test_a_patched_trainer_on_its_own_fits_and_validates_as_before(module, patched):
    before = flat(module)
    loop(patched, module)
    assert not torch.equal(flat(module), before)
    assert not federated.is_running()


@quietly
def test_lightnings_fit_from_a_checkpoint_is_refused(begin, module, patched):
    begin(LIGHTNING_GLOBAL)
    with pytest.raises(RuntimeError, match="leave ckpt_path out"):
        patched.fit(module, LOADER, ckpt_path="last.ckpt")


@quietly
def test_examples_that_lightning_cannot_count_must_be_given(begin, module, lightning, patched):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(torch.utils.data.TensorDataset(X, Y))

    begin(LIGHTNING_GLOBAL)
    with pytest.raises(RuntimeError, match="num_examples=n"):
        patched.fit(module, torch.utils.data.DataLoader(Stream(), batch_size=16))
