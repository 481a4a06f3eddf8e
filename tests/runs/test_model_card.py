"""MODEL.md says what a model was trained on and by, and how to load it."""

from fedprox.config.schema import Target
from fedprox.runs.model_card import card
from fedprox.runs.model_file import ModelFacts

FACTS = {
    **{"algorithm": "FedProx (mu = 1)", "name": "my|data", "data": "10 clients", "seed": 3, "repetition": 1},
    "git_commit": None,
}
STATE = {
    "final": {"round": 9, "test_accuracy": 0.8123, "test_loss": 0.5},
    "best": {"round": 7, "test_accuracy": 0.9, "test_loss": None},
}


def facts(target: str = "fedprox.models.mlp.mlp", **more: object) -> ModelFacts:
    known = {"input_shape": [8, 8], "num_classes": 2, "takes_tokens": False, "mean": 0.0, "std": 1.0}
    return ModelFacts(model=Target(_target_=target), **known, class_names=["no", "yes"], commit=None, **more)


def test_a_card_names_data_algorithm_results_classes_and_the_call_that_loads_the_model():
    lines = card(FACTS, STATE, facts()).splitlines()
    assert "| trained by | FedProx (mu = 1) |" in lines
    assert r"| on | my\|data: 10 clients |" in lines
    assert "| classes | 2: no, yes |" in lines
    assert "| after round 9 | test accuracy 0.8123, test loss 0.5000 |" in lines
    assert "| best, after round 7 | test accuracy 0.9000 |" in lines
    assert "| seed, repetition | 3, 1 |" in lines
    assert "| commit | unknown |" in lines
    assert any(line.startswith('model = fedprox.load_model("model.safetensors")  #') for line in lines)
    assert "labels = model.predict(examples)  # shape (n, 8, 8)" in lines


def test_a_card_says_which_code_must_be_given():
    for target in ("fedprox.held.MyNet", "my_module.MyNet"):
        assert 'fedprox.load_model("model.safetensors", model=MyNet)' in card(FACTS, STATE, facts(target))


def test_a_card_without_results_or_classes_has_no_such_rows():
    text = card(FACTS, {"final": None, "best": None}, facts(task="regression"))
    assert "round" not in text.replace("every round", "")
    assert "classes" not in text


def test_the_model_of_a_script_is_a_state_dict():
    assert 'weights = load_file("model.safetensors")' in card(FACTS, STATE, None)
