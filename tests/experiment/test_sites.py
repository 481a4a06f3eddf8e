"""Sites of a federation: the bytes of a simulation, no example in any message, one line for what is wrong.

The federation is played in this process: its nodes' ClientApp gets messages as Flower's protocol would carry them.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto

from fedprox.data.sources.site_facts import FEWEST
from fedprox.data.sources.sites import sites
from fedprox.deployment import job
from fedprox.deployment.client_app import app
from fedprox.engines.identity import act_as_server
from fedprox.errors import RunStopped, UserError
from fedprox.experiment import run as experiment
from fedprox.experiment.sites import read_facts, write_facts
from tests.data.sources.site_folders import FORMATS, NAMES, SIZES, examples, write_side, write_sites
from tests.settings import config_of

RUN = ("dataset=sites", "num_rounds=2", "num_epochs=2", "evaluation.per_client=true", "mu=0.1", "seed=5")
DEPLOYED = (*RUN, "engine=deployment", "engine.start_timeout=0")


class Nodes:
    """The grid that Flower gives a ServerApp, with nodes that are played here.

    Attributes:
        configs: Each node's config by its id.
        carried: Every message and reply, as bytes.
    """

    def __init__(self, *configs: dict[str, str]) -> None:
        self.configs = dict(enumerate(configs, start=100))
        self.carried: list[bytes] = []
        self.before = lambda kind, node: None  # called before a node gets a message of a kind
        self._replies: dict[str, object] = {}

    def get_node_ids(self) -> list[int]:
        return list(self.configs)

    def push_messages(self, messages) -> list[str]:
        for message in messages:
            number = f"{len(self.carried):064x}"
            message.metadata.__dict__["_message_id"] = number
            node = message.metadata.dst_node_id
            self.before(message.metadata.message_type, node)
            context = Context(1, node, self.configs[node], RecordDict(), {})
            self._replies[number] = self._carry(app(self._carry(message), context))
        return list(self._replies)

    def pull_messages(self, numbers) -> list:
        return [self._replies.pop(number) for number in numbers]

    def _carry(self, message):
        sent = message_to_proto(message)
        self.carried.append(sent.SerializeToString())
        return message_from_proto(sent)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def deployed(tmp_path, monkeypatch):
    """Return a function that runs a job on nodes; its run directory is tmp_path / "deployed"."""

    def run(nodes: Nodes, *settings: str, resume: bool = False) -> Path:
        act_as_server()
        config, run_dir = config_of(*DEPLOYED, *settings), tmp_path / "deployed"
        run_dir.mkdir(exist_ok=True)
        job.write(job.Job(config, str(run_dir), resume, {}), tmp_path / "job", tmp_path)
        monkeypatch.setattr(sys, "path", [str(tmp_path / "job"), *sys.path])
        experiment.run(config, run_dir, flower_grid=nodes, resume=resume)
        return run_dir

    return run


def nodes_of(folder: Path, **more: str) -> Nodes:
    """Return a node for each site, in another order than that of the names."""
    return Nodes(*({"site": name, "data": str(folder / name), **more} for name in reversed(NAMES)))


def table(file: Path) -> list[list[str]]:
    header, *rows = [line.split(",") for line in file.read_text().splitlines()]
    return [[value for name, value in zip(header, row, strict=True) if name != "time_s"] for row in (header, *rows)]


def assert_same(one: Path, other: Path) -> None:
    for name in ("metrics.csv", "clients.csv"):
        assert table(one / name) == table(other / name)
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def simulated(folder: Path, *settings: str) -> Path:
    run_dir = folder.parent / "simulated"
    run_dir.mkdir()
    experiment.run(config_of(*RUN, "engine=local", f"dataset.path={folder}", *settings), run_dir)
    return run_dir


@pytest.mark.parametrize("form", FORMATS)
def test_a_federation_writes_the_bytes_of_its_simulation(tmp_path, deployed, form):
    folder = write_sites(tmp_path / "sites", form)
    assert_same(simulated(folder, f"dataset.format={form}"), deployed(nodes_of(folder), f"dataset.format={form}"))


def test_so_it_does_with_fed_dane_and_without_normalisation(tmp_path, deployed):
    folder = write_sites(tmp_path / "sites", "csv")
    settings = ("dataset.format=csv", "strategy=feddane", "dataset.normalise=false", "clients_per_round=2")
    assert_same(simulated(folder, *settings), deployed(nodes_of(folder), *settings))


def encodings(data, num_rows):
    """Yield the bytes by which any of the first examples could be recognised in a message."""
    stored, inputs = data.examples.features, data.examples.model_input(data.examples.features)
    for rows in (stored, inputs):
        for row in rows[:num_rows].reshape(num_rows, -1):
            for dtype in {row.dtype, np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int64)}:
                yield row.astype(dtype).tobytes()
            yield ",".join(map(str, row.tolist())).encode()
            yield ", ".join(map(str, row.tolist())).encode()


@pytest.mark.parametrize("form", FORMATS)
def test_no_example_is_in_any_message(tmp_path, deployed, form):
    folder = write_sites(tmp_path / "sites", form)
    nodes = nodes_of(folder, share="classes")
    deployed(nodes, f"dataset.format={form}")
    data = sites(form, str(folder), seed=5)
    found = [row for row in encodings(data, len(data.examples.labels)) for carried in nodes.carried if row in carried]
    assert found == []
    # The search finds what is there: the names of the classes are, and an example would be.
    assert any(b"classes" in carried for carried in nodes.carried)
    planted = data.examples.model_input(data.examples.features[:1]).tobytes()
    assert any(row in b"before" + planted + b"after" for row in encodings(data, 1))


def test_facts_and_agreement_are_all_that_is_told_about_data(tmp_path, deployed):
    folder = write_sites(tmp_path / "sites", "csv")
    told, nodes = [], nodes_of(folder)
    carry = nodes._carry
    nodes._carry = lambda message: (told.append(message), carry(message))[1]
    deployed(nodes, "dataset.format=csv")
    replies = [message for message in told if message.metadata.reply_to_message_id]
    kinds = {message.metadata.message_type: set(message.content) for message in replies}
    assert kinds == {
        "query.who": {"facts"},
        "query.facts": {"facts"},
        "train": {"arrays", "metrics"},
        "evaluate": {"metrics"},
    }
    facts = next(message.content["facts"] for message in replies if message.metadata.message_type == "query.facts")
    assert {name for name, value in facts.items() if value != []} == {
        *("name", "num-examples", "num-held-out", "input-shape", "dtype", "classes", "columns", "white"),
        *("mean", "squares", "fingerprint"),
    }


def test_counts_by_class_leave_a_site_only_if_it_shares_them(tmp_path, deployed):
    folder = write_sites(tmp_path / "sites", "csv")
    for share, expected in (("", []), ("classes", [13, 14, 13])):  # 40 examples of 3 classes, numbers from FEWEST on
        nodes, told = nodes_of(folder, **({"share": share} if share else {})), []
        carry = nodes._carry
        nodes._carry = lambda message, told=told, carry=carry: (told.append(message), carry(message))[1]
        deployed(nodes, "dataset.format=csv")
        facts = [each.content["facts"] for each in told if each.content and "counts" in each.content.get("facts", {})]
        (counts,) = (each["counts"] for each in facts if each["name"] == "hospital_c")
        assert sorted(counts) == sorted(expected)
        (counts,) = (each["counts"] for each in facts if each["name"] == "hospital_a")
        assert all(count == 0 or count >= FEWEST for count in counts)


def missing(folder: Path) -> None:
    shutil.rmtree(folder)


def other_shape(folder: Path) -> None:
    shutil.rmtree(folder)
    images, labels = examples(30, 1)
    write_side(folder, "train", "csv", images[:, :3], labels)


def no_label(folder: Path) -> None:
    (folder / "train.csv").write_text("x,y\n1,2\n")


def secret_text(folder: Path) -> None:
    file = folder / "train.csv"
    file.write_text(file.read_text().replace("\n", "\nMr Smith,", 2))


BROKEN = {
    "no folder": (missing, [], "site hospital_b: its data .* do not exist"),
    "another shape": (
        other_shape,
        [],
        r"site hospital_b: its examples have the shape \(12,\), but those of hospital_a",
    ),
    "no label column": (no_label, [], "site hospital_b: train.csv must have the column dataset.label"),
    "unknown class": (lambda _: None, ["dataset.classes=[0,1]"], "site hospital_a: it has the unknown class 2"),
    "a wrong value": (secret_text, [], "site hospital_b: train.csv: row 1 has more values"),
    "nothing held out": (lambda _: None, ["hold_out=0"], "site hospital_b: it has no held-out example"),
}


@pytest.mark.parametrize(("break_it", "settings", "says"), BROKEN.values(), ids=BROKEN)
def test_a_broken_site_ends_the_run_before_it_begins_in_a_line_that_names_it(
    tmp_path, deployed, break_it, settings, says
):
    folder = write_sites(tmp_path / "sites", "csv")
    break_it(folder / "hospital_b")
    with pytest.raises(UserError, match=says) as refused:
        deployed(nodes_of(folder), "dataset.format=csv", *settings)
    assert "\n" not in str(refused.value)
    assert "Smith" not in str(refused.value)
    assert list((tmp_path / "deployed").iterdir()) == []


def test_what_shows_a_value_of_the_data_stays_in_the_sites_log(tmp_path, deployed, caplog):
    folder = write_sites(tmp_path / "sites", "npz")
    np.savez(folder / "hospital_b" / "train.npz", features=np.full((20, 4, 4), 1e300), labels=[0, 1] * 10)
    nodes = nodes_of(folder)
    with pytest.raises(UserError, match="site hospital_b: its data cannot be used; the log of its SuperNode"):
        deployed(nodes, "dataset.format=npz")
    assert not any(b"e+300" in carried for carried in nodes.carried)
    assert "1e+300" in caplog.text


def test_nodes_without_site_or_data_and_two_of_one_name_are_refused(tmp_path, deployed):
    folder = write_sites(tmp_path / "sites", "csv")
    full = {"site": "hospital_a", "data": str(folder / "hospital_a")}
    with pytest.raises(UserError, match="node 101 has no site in its node config; start its SuperNode"):
        deployed(Nodes(full, {}), "dataset.format=csv")
    with pytest.raises(UserError, match="site hospital_b: its SuperNode has no data"):
        deployed(Nodes(full, {"site": "hospital_b"}), "dataset.format=csv")
    with pytest.raises(UserError, match="site hospital_a: two SuperNodes have this name"):
        deployed(Nodes(full, full), "dataset.format=csv")
    with pytest.raises(UserError, match="must have a name"):
        deployed(Nodes(full, full | {"site": "b c"}), "dataset.format=csv")


def test_the_number_of_sites_may_be_given_and_their_names(tmp_path, deployed):
    folder = write_sites(tmp_path / "sites", "csv")
    run_dir = deployed(nodes_of(folder), "dataset.format=csv", "num_clients=2", "num_rounds=1")
    assert {row[1] for row in table(run_dir / "clients.csv")[1:]} == {"0", "1"}
    chosen = ("dataset.format=csv", "engine.sites=[hospital_c,hospital_a]", "num_rounds=1")
    run_dir = deployed(nodes_of(folder), *chosen)
    assert [row[2] for row in table(run_dir / "clients.csv")[1:]].count(str(SIZES["hospital_c"][0])) == 1
    with pytest.raises(UserError, match=r"engine\.sites must name 3 different sites"):
        deployed(nodes_of(folder), *chosen, "num_clients=3")
    with pytest.raises(UserError, match="no SuperNode plays nowhere"):
        deployed(nodes_of(folder), "dataset.format=csv", "engine.sites=[hospital_a,nowhere]")
    with pytest.raises(UserError, match="clients_per_round must be at most 3"):
        deployed(nodes_of(folder), "dataset.format=csv", "clients_per_round=4")


def test_facts_can_be_asked_without_training(tmp_path, deployed, caplog):
    folder = write_sites(tmp_path / "sites", "csv")
    for share in ({"share": "classes"}, {}):
        config, nodes = config_of(*DEPLOYED, "dataset.format=csv"), nodes_of(folder, **share)
        deployed(nodes, "dataset.format=csv", "num_rounds=1")  # puts the job where nodes find it
        nodes.carried.clear()
        with caplog.at_level("INFO"):
            write_facts(config, nodes, tmp_path)
        assert len(nodes.carried) == 2 * 2 * len(NAMES)  # who and facts, each with a reply
        told = read_facts(tmp_path)
        assert [each.name for each in told] == list(NAMES)
        assert told[0].num_examples == SIZES[NAMES[0]][0]
        assert told[2].counts == ((14, 13, 13) if share else ())
    assert "hospital_c: 40 training examples, 10 held out; by class: 0: 14, 1: 13, 2: 13" in caplog.text
    assert "hospital_a: 24 training examples, 8 held out; by class: 0: 0 to 9, 1: 0 to 9, 2: 0 to 9" in caplog.text
    assert "hospital_b: 27 training examples, 4 held out; by class: not shared" in caplog.text


def test_a_path_of_a_simulation_is_refused(tmp_path, deployed):
    with pytest.raises(UserError, match=r"dataset\.path=.* is for simulations"):
        deployed(Nodes(), "dataset.format=csv", "dataset.path=there")


def test_data_that_change_during_a_run_are_noticed(tmp_path, deployed):
    folder = write_sites(tmp_path / "sites", "csv")
    nodes = nodes_of(folder)

    def grow(kind: str, node: int) -> None:
        if kind == "train" and nodes.configs[node]["site"] == "hospital_b":
            write_side(folder / "hospital_b", "train", "csv", *examples(60, 1))

    nodes.before = grow
    says = "site hospital_b: it has 54 training examples, and told of 27 at the start"
    with pytest.raises(RunStopped, match=says):
        deployed(nodes, "dataset.format=csv", "on_client_error=stop")


def test_a_resumed_run_is_the_uninterrupted_one_and_recognises_other_data(tmp_path, deployed):
    folder = write_sites(tmp_path / "sites", "csv")
    deployed(nodes_of(folder), "dataset.format=csv")
    resumed = deployed(nodes_of(folder), "dataset.format=csv", "num_rounds=3", resume=True)
    assert_same(simulated(folder, "dataset.format=csv", "num_rounds=3"), resumed)
    images, labels = examples(24, 0)
    write_side(folder / "hospital_a", "train", "csv", 255 - images, labels)
    with pytest.raises(UserError, match="had other data"):
        deployed(nodes_of(folder), "dataset.format=csv", "num_rounds=4", resume=True)
