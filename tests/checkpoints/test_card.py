"""Test model cards: the text for readers, and the metadata for the Hub."""

import json

import pytest
import yaml
from hub_server import card_errors
from huggingface_hub import ModelCard

import mmzoo
from mmzoo.checkpoints import screening
from mmzoo.common import energy
from mmzoo.testing import Sample


class Odd(Sample):
    """Give examples whose texts would be markup in a table."""

    def load(self, split):
        from dataclasses import replace

        texts = ["a | b\nc", "<script>alert(1)</script>", "[x](javascript:alert(1))", "`code` <b>", "x" * 5000]
        return [replace(e, text=texts[i % len(texts)]) for i, e in enumerate(super().load(split))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from mmzoo.testing import tiny

    used = [5e6]  # joules

    class Burning(Sample):
        """Uses 0.01 kWh of energy while an example is read."""

        def load(self, split):
            examples = super().load(split)

            class Reading(list):
                def __getitem__(self, at):
                    used[0] += 36_000
                    return super().__getitem__(at)

            return Reading(examples)

    class GPUMeter(energy.Meter):
        """Reads the counters of two GPUs whatever the device."""

        def __init__(self, device):
            super().__init__("cuda")

    folder = tmp_path_factory.mktemp("card") / "m"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(energy, "gpu_counters", lambda: [lambda: used[0], lambda: 7e6])
        patch.setattr("mmzoo.training.run.Meter", GPUMeter)
        options = {"max_steps": 4, "batch_size": 4}
        mmzoo.train(tiny("cnn-product-lstm"), dataset=Burning(), output=folder, progress=False, training=options)
    mmzoo.evaluate(folder, dataset=Odd(), progress=False)
    mmzoo.evaluate(folder, dataset=Odd(), progress=False, limit=4, controls=("shuffled",), samples=0)
    return folder


@pytest.fixture(scope="module")
def card(trained):
    return (trained / "README.md").read_text()


@pytest.fixture(scope="module")
def record(trained):
    return json.loads((trained / "run.json").read_text())


def section(card, title):
    return card.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_every_score_has_its_interval_and_controls_in_the_metadata(card, record):
    assert card_errors(card) == []
    results = ModelCard(card).data.eval_results
    for evaluation in record["evaluations"]:
        for control, scores in {None: evaluation["scores"], **evaluation["controls"]}.items():
            for metric, score in scores.items():
                found = [
                    r
                    for r in results
                    if r.metric_type == metric
                    and r.metric_args.get("control") == control
                    and r.dataset_args["examples"] == evaluation["examples"]
                ]
                assert len(found) == 1
                assert found[0].metric_value == score["value"]
                assert (found[0].metric_args["low"], found[0].metric_args["high"]) == (score["low"], score["high"])
                assert f"(95% interval {score['low']:.4f} to {score['high']:.4f})" in found[0].metric_name
                assert found[0].dataset_args["fingerprint"] == evaluation["fingerprint"]
    assert len(results) == 4 * 3 + 4 * 2


def test_it_says_how_to_use_it_in_three_lines(card):
    code = section(card, "How to use it").partition("```python\n")[2].partition("\n```")[0]
    assert len(code.replace("\n\n", "\n").splitlines()) == 3
    compile(code, "card", "exec")


def test_samples_are_few_cut_and_no_markup(card, record):
    samples = record["evaluations"][0]["samples"]
    assert [said["id"] for said in samples] == [f"test/{i}" for i in (0, 2, 4, 5, 7)]
    assert max(len(said["text"]) for said in samples) == 300
    assert record["evaluations"][1]["samples"] == []
    rows = [line for line in section(card, "Sample predictions").splitlines() if line.startswith("| test/")]
    assert len(rows) == 5
    for row, said in zip(rows, samples, strict=True):
        assert row.replace("\\|", "").count("|") == 5
        assert f"| {said['prediction']} |" in row
    assert "<script" not in card
    assert "javascript:" not in card


def test_what_it_cost(card, record):
    used = record["training"]["energy"]
    assert used["measured"] == ["2 GPUs (NVML)"]
    assert used["kwh"] == pytest.approx(4 * 4 * 0.01)  # a batch of four, four times
    training, measuring, _ = (
        line for line in section(card, "Hardware and energy").splitlines() if line.startswith(("| training", "| evaluation"))
    )
    assert "0.16 kWh, measured on 2 GPUs (NVML)" in training
    assert "not measured" in measuring


@pytest.fixture
def nvml(monkeypatch):
    """A stand-in for nvidia-ml-py and two GPUs, of which the second is the current one; gives their counters in millijoules."""
    import sys
    from types import SimpleNamespace

    import torch

    counters = {"GPU-a": 1_000_000, "GPU-b": 2_000_000}
    module = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: counters[handle],
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="ab"[index]))
    return counters


def test_energy_is_that_of_the_current_gpu_or_of_all_where_there_are_several_processes(nvml, monkeypatch):
    with energy.Meter("cuda:1") as one:
        nvml["GPU-a"] += 3_600_000_000
        nvml["GPU-b"] += 7_200_000_000
    assert one.energy == {"kwh": pytest.approx(2.0), "measured": ["1 GPU (NVML)"]}
    monkeypatch.setenv("WORLD_SIZE", "2")
    with energy.Meter("cuda:1") as both:
        nvml["GPU-a"] += 3_600_000_000
        nvml["GPU-b"] += 7_200_000_000
    assert both.energy == {"kwh": pytest.approx(3.0), "measured": ["2 GPUs (NVML)"]}


def test_energy_is_none_where_nvml_cannot_read_it(nvml, monkeypatch):
    import sys

    with energy.Meter("cpu") as meter:
        pass
    assert meter.energy is None
    nvml.clear()  # a GPU without a counter
    with energy.Meter("cuda:1") as meter:
        pass
    assert meter.energy is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    with energy.Meter("cuda:1") as meter:
        pass
    assert meter.energy is None


def test_what_was_not_recorded_is_not_in_it(classifier, tmp_path):
    card = mmzoo.build(classifier).card()
    assert "No evaluation is recorded." in card
    assert "No run is recorded." in card
    assert not any(title in card for title in ("Sample predictions", "Hardware and energy", "model-index", "datasets:"))
    assert card_errors(card) == []


def test_records_of_before_still_load(trained, record, tmp_path):
    import shutil

    from mmzoo.checkpoints import folder as checkpoint

    folder = tmp_path / "old"
    shutil.copytree(trained, folder)
    new = ("local", "dataset_options", "license", "hardware", "energy", "limit", "options", "device", "samples")
    old = {
        key: [{k: v for k, v in e.items() if k not in new} for e in each] for key, each in {"e": record["evaluations"]}.items()
    }
    training = {key: value for key, value in record["training"].items() if key not in new} | {"device": "cpu"}
    checkpoint.update_run(folder, {"training": training, "evaluations": old["e"]}, "")
    card = mmzoo.load(folder).card()
    assert "device | energy" in card
    assert "not recorded" in card
    assert "| unknown | terms unknown |" in card


def test_too_many_samples_in_a_record_are_refused(trained, record, tmp_path):
    import shutil

    from mmzoo.checkpoints import folder as checkpoint

    shutil.copytree(trained, tmp_path / "m")
    said = {"id": "x", "text": "x" * 2000, "targets": [], "prediction": "x"}
    for samples in ([said], [{**said, "text": "x"}] * 21):
        evaluations = [{**record["evaluations"][0], "samples": samples}]
        checkpoint.update_run(tmp_path / "m", {**record, "evaluations": evaluations}, "")
        with pytest.raises(mmzoo.errors.CheckpointError, match=r"run\.json: evaluations\.0\.samples"):
            mmzoo.load(tmp_path / "m")


def test_the_metadata_are_plain_yaml(card):
    data = yaml.safe_load(card.split("---")[1])
    assert (data["license"], data["license_name"]) == ("other", "listed-in-the-card")
    assert screening.inert(card) == card
