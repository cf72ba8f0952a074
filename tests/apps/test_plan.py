"""`ltune plan`, as it is called: the table, the JSON, the refusal; with the embedded model, and with nothing but a config.json."""

import json
import re

import pytest
import torch

from ltune.apps import plan as command
from ltune.apps.plan_text import duration
from ltune.apps.planning import CONTEXT, moments_of
from ltune.cli import main
from ltune.errors import UsageError
from ltune.models.adapters import Full, LoRA
from ltune.models.outline import outline
from ltune.models.quantize import NF4, Int8

GIB = 2**30
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip
MIXTURE = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 500, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip


@pytest.fixture
def folder(rows, monkeypatch):
    """24 conversations and a configuration for a GPU; and folders that hold a config.json each."""
    text = "run: run\nmodel: {model: tiny}\ndata: {datasets: [rows.jsonl], max_length: 64, batch_size: 4}\n"
    (rows.parent / "job.yaml").write_text(text + "trainer: {max_epochs: 2, precision: bf16-true, accumulate_grad_batches: 2}\n")
    for name, config in (("llama", LLAMA), ("mixture", MIXTURE)):
        (rows.parent / name).mkdir()
        (rows.parent / name / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(rows.parent)
    return rows.parent


def plan(capsys, *arguments):
    """Exit code, stdout, stderr."""
    code = main(["plan", "--config", "job.yaml", *map(str, arguments)])
    return code, *capsys.readouterr()


def planned(capsys, *arguments):
    """Exit code, and the JSON."""
    code, out, _ = plan(capsys, "--json", *arguments)
    return code, json.loads(out)


def test_the_embedded_model(folder, capsys):
    code, page, _ = plan(capsys, "--memory", "4GiB", "--tokens-per-second", "100")
    assert code == 0
    assert page.startswith("ltune plan job.yaml\n")
    assert re.search(r"^model +tiny, 2\.62 million weights; 131,072 are trained$", page, re.M)
    assert re.search(r"^layers +ltune's own$", page, re.M)
    assert re.search(r"^GiB on each device +speed +auto +least$", page, re.M)
    assert re.search(r"^in all +0\.\d\d +0\.\d\d +0\.\d\d$", page, re.M)
    assert re.search(r"^ltune fit takes +auto: micro-batches of up to \d+ tokens", page, re.M)
    assert re.search(r"^memory +fits: 0\.\d\d of 4\.00 GiB \(\d\d%\)$", page, re.M)
    assert re.search(r"^an epoch +\d+ s: \d+ tokens in 3 steps at 100 tokens a second$", page, re.M)
    assert not (folder / "run").exists()
    widths = {len(line) for line in page.split("\n\n")[1].splitlines()}
    assert len(widths) == 1  # aligned


def test_without_a_memory_the_need_of_each_way(folder, capsys):
    code, found = planned(capsys)
    assert (code, found["memory"], found["fits"], found["chosen"]) == (0, None, None, "speed")
    assert list(found["ways"]) == ["speed", "least"]
    assert planned(capsys, "--model.memory", "least")[1]["chosen"] == "least"


def test_8_billion_weights_from_a_config_alone(folder, capsys):
    """As measured on a GPU: 5.5 GiB loaded; 13.5 GiB more for held weights with room for what is joined; 43.3 GiB in all."""
    code, found = planned(capsys, "--model.model", "llama", "--memory", "139GiB", "--data.max_length", "1024")
    assert code == 0
    assert (found["parameters"], found["trained"], found["fast"], found["rows_assumed"]) == (8030261248, 20971520, True, True)
    parts = found["ways"]["speed"]["parts"]
    loaded = parts["weights"] + parts["quantization constants"] + parts["adapter"]
    assert loaded / GIB == pytest.approx(5.5, abs=0.06)
    assert parts["held for products"] / GIB == pytest.approx(13.5, abs=0.1)
    assert found["step_tokens"] == 8 * 1024
    assert found["ways"]["speed"]["peak"] / GIB == pytest.approx(43.3, rel=0.02)
    assert found["ways"]["auto"]["setting"]["cached"] is True
    assert found["ways"]["speed"]["peak"] == sum(parts.values())
    assert found["ways"]["speed"]["total"] == found["ways"]["speed"]["peak"] + CONTEXT


def test_a_teacher_beside_the_student_counts(folder, capsys):
    alone = planned(capsys, "--model.objective", "Distill")[1]["ways"]["speed"]
    options = ["--model.objective", "Distill", "--model.objective.teacher", "llama"]
    four_bits = planned(capsys, *options)[1]["ways"]["speed"]
    whole = planned(capsys, *options, "--model.objective.teacher_quantize", "null")[1]["ways"]["speed"]
    assert alone["parts"]["other models"] == 0
    assert four_bits["parts"]["other models"] / GIB == pytest.approx(5.3, abs=0.1)
    assert whole["parts"]["other models"] / GIB == pytest.approx(8.03e9 * 2 / GIB, abs=0.1)
    assert (four_bits["total"] - alone["total"]) / GIB == pytest.approx(5.3, abs=0.1)


def test_the_reward_model_and_the_reference_of_answers_count(folder, capsys):
    (folder / "llama" / "adapter").mkdir()
    (folder / "llama" / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "llama"}))
    reward = {"class_path": "ModelReward", "init_args": {"folder": "llama/adapter", "quantize": "NF4"}}
    reference = {"class_path": "OtherModel", "init_args": {"model": "llama"}}
    found = []
    for changes in (
        {"rewards": ["ExactMatch"], "reference": reference},
        {"rewards": [reward]},
        {"rewards": [reward], "kl": 0.1, "reference": reference},
    ):
        (folder / "grpo.yaml").write_text(json.dumps({"model": {"objective": {"class_path": "GRPO", "init_args": changes}}}))
        found.append(planned(capsys, "--config", "grpo.yaml")[1]["ways"]["speed"]["parts"]["other models"] / GIB)
    assert found == [0, pytest.approx(5.3, abs=0.1), pytest.approx(5.3 + 8.03e9 * 2 / GIB, abs=0.1)]  # without kl there is no reference


@pytest.mark.parametrize("memory", [8, 12, 16, 24, 48, 80])
def test_auto_keeps_inside_the_memory(folder, capsys, memory):
    code, found = planned(capsys, "--model.model", "llama", "--memory", f"{memory}GiB", "--data.max_length", "1024")
    assert (code, found["fits"]) == (0, True)
    assert found["ways"]["auto"]["total"] <= memory * GIB


def test_what_cannot_fit_is_refused_with_what_to_change(folder, capsys):
    code, page, said = plan(capsys, "--model.model", "llama", "--memory", "8GiB", "--model.quantize", "null")
    assert code == 2
    assert "does not fit" in page
    assert re.match(r"error: the run needs \d+\.\d\d GiB on each device, \d{3}% of its 8\.00 GiB\n", said)
    assert re.search(r"^  --model\.quantize NF4  needs \d\.\d\d GiB, which fits$", said, re.M)
    assert len(said.splitlines()) <= 5


def test_speed_is_refused_where_auto_would_fit(folder, capsys):
    options = ("--model.model", "llama", "--memory", "12GiB", "--model.memory", "speed")
    code, _, said = plan(capsys, *options)
    assert code == 2
    assert re.search(r"^  --model\.memory auto  needs \d+\.\d\d GiB, which fits$", said, re.M)


def test_up_to_110_percent_is_tried(folder, capsys):
    _, found = planned(capsys, "--model.memory", "speed")
    total = found["ways"]["speed"]["total"]
    code, page, _ = plan(capsys, "--model.memory", "speed", "--memory", f"{int(total / 1.09)}B")
    assert code == 0
    assert "about fits, and may run out" in page
    assert plan(capsys, "--model.memory", "speed", "--memory", f"{int(total / 1.11)}B")[0] == 2


def test_rows_that_cannot_be_read_are_taken_for_the_longest(folder, capsys):
    code, page, _ = plan(capsys, "--model.model", "llama")
    assert code == 0
    assert "! the rows were not read, and each is taken for 64 tokens: model: the folder llama has no tokenizer" in page
    assert planned(capsys, "--full-rows")[1]["step_tokens"] == 8 * 64
    packed = planned(capsys, "--full-rows", "--data.tokens_per_batch", "100")[1]
    assert (packed["step_tokens"], packed["longest"]) == (200, 64)


def test_prepared_rows_are_those_that_fit_takes(folder, capsys):
    """The heaviest step, as the data module finds it for the trainer."""
    from ltune.apps.rehearsal import Rehearsal

    rehearsal = Rehearsal(["--config", "job.yaml", "--trainer.accelerator", "cpu"], with_trainer=True)
    rehearsal.build()
    rehearsal.datamodule.trainer = rehearsal.build_trainer()
    rehearsal.prepare()
    found = planned(capsys)[1]
    assert found["step_tokens"] == rehearsal.datamodule.heaviest_step.tokens
    assert found["rows_assumed"] is False


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--model.model", "mixture"], "Mixtral"),
        (["--data.layout", "padded"], "data.layout: padded"),
        (["--trainer.accelerator", "cpu"], "trainer.accelerator: cpu"),
        (["--trainer.precision", "32-true"], "trainer.precision 32-true"),
        (["--model.fast", "false"], "model.fast: false"),
        (["--model.adapter", "LoRA", "--model.adapter.dora", "true"], "adapter.dora"),
        (["--model.quantize", "Int8"], "Linear8bitLt"),
    ],
)
def test_transformers_own_layers(folder, capsys, options, reason):
    code, page, _ = plan(capsys, *options)
    assert code == 0
    assert re.search(rf"^layers +transformers' own \(.*{re.escape(reason)}.*\); the estimate is rougher$", page, re.M)
    assert re.search(r"^GiB on each device +as configured +checkpointing$", page, re.M)


@pytest.mark.parametrize("quantize", [None, NF4(), Int8()], ids=["16 bits", "NF4", "Int8"])
def test_magnitudes_of_dora_are_counted(quantize):
    found = [outline("tiny", dtype=torch.bfloat16, quantize=quantize, adapter=LoRA(dora=dora)) for dora in (False, True)]
    layers = [module for module in found[1].causal.modules() if hasattr(module, "lora_magnitude_vector")]
    assert found[1].trained - found[0].trained == sum(layer.out_features for layer in layers) > 0


def test_a_rate_is_read_from_the_run(folder, capsys):
    (folder / "run").mkdir()
    lines = [{"step": step, "train/tokens_per_second": rate} for step, rate in ((1, 1.0), (2, 40.0), (3, 60.0))]
    (folder / "run/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, page, _ = plan(capsys)
    assert code == 0
    assert "at 50 tokens a second, as run/metrics.jsonl has it" in page


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--memory", "much"], "wants a size such as 24GiB, got 'much'"),
        (["--memory", "0"], "wants a size"),
        (["--tokens-per-second", "-3"], "wants a number above 0"),
        (["--memry", "3"], 'did you mean "--memory"?'),
        (["--model.modle", "3"], "modle"),
        (["--model.lora_plus_ratio", "-1"], "lora_plus_ratio is above 0"),
    ],
)
def test_wrong_usage(folder, capsys, options, said):
    code, out, error = plan(capsys, *options)
    assert (code, out) == (2, "")
    assert said in error
    assert len(error.splitlines()) <= 5


def test_sizes():
    assert [command.size(text) for text in ("24GiB", "24", "24 g", "24GB", "512MiB", "7b")] == [
        24 * GIB, 24 * GIB, 24 * GIB, 24 * 10**9, 512 * 2**20, 7,
    ]  # fmt: skip


def test_durations():
    assert [duration(seconds) for seconds in (3.4, 61, 3599.6, 90000)] == ["3 s", "1 min 1 s", "1 h 0 min", "25 h 0 min"]


@pytest.mark.parametrize(
    ("name", "options", "moments"),
    [
        ("torch.optim.AdamW", {"lr": 1e-3}, 2.0),
        ("torch.optim.SGD", {"lr": 1e-3}, 0.0),
        ("torch.optim.SGD", {"lr": 1e-3, "momentum": 0.9}, 1.0),
        ("bitsandbytes.optim.PagedAdamW8bit", {"lr": 1e-3}, 0.0),
    ],
)
def test_moments_of_optimizers(name, options, moments):
    assert moments_of({"class_path": name, "init_args": options}, torch.float32) == moments


def test_the_outline_has_the_bytes_of_the_model():
    """Against the embedded model as it is loaded."""
    from ltune.models.load import load_model

    loaded = load_model("tiny", dtype=torch.bfloat16)
    found = outline("tiny", dtype=torch.bfloat16, quantize=None, adapter=Full())
    assert found.stored.weights == sum(tensor.nbytes for tensor in [*loaded.parameters(), *loaded.buffers()])
    adapted = LoRA(rank=4).apply(loaded)
    found = outline("tiny", dtype=torch.bfloat16, quantize=None, adapter=LoRA(rank=4))
    assert found.trained == sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert found.stored.adapter == found.trained_bytes == 4 * found.trained


def test_an_outline_of_fewer_layers():
    found = outline("tiny", dtype=torch.bfloat16, quantize=NF4(), adapter=LoRA(), layers=1)
    whole = outline("tiny", dtype=torch.bfloat16, quantize=NF4(), adapter=LoRA())
    assert (len(found.causal.model.layers), whole.trained) == (1, found.trained * len(whole.causal.model.layers))


def test_the_outline_counts_packed_weights():
    from ltune.models.load import load_model

    loaded = load_model("tiny", dtype=torch.bfloat16, quantize=NF4())
    found = outline("tiny", dtype=torch.bfloat16, quantize=NF4(), adapter=LoRA())
    assert found.stored.weights == sum(tensor.nbytes for tensor in [*loaded.parameters(), *loaded.buffers()])
    states = [parameter.quant_state for parameter in loaded.parameters() if hasattr(parameter, "quant_state")]
    assert found.stored.constants == pytest.approx(sum(one.absmax.nbytes + one.state2.absmax.nbytes for one in states), rel=0.01)


def test_other_quantizations_are_not_guessed(folder):
    config = LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
    (folder / "llama/config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="gptq"):
        outline("llama", dtype=torch.bfloat16, quantize=None, adapter=LoRA())


def test_a_section_of_check(folder, capsys):
    assert main(["check", "--config", "job.yaml"]) == 0
    page = capsys.readouterr().out
    section = page[page.index("[ok] memory") :].splitlines()
    assert re.fullmatch(r"  \d+\.\d\d GiB on each device.*", section[1])
    assert re.match(r"  (speed|auto): micro-batches of up to \d+ tokens", section[2])


def test_trained_whole_in_16_bits(folder, capsys):
    """Weights, gradients and two moments of 2 bytes each; the head's gradient is summed in 4."""
    options = ("--model.quantize", "null", "--model.adapter", "Full", "--model.model", "llama")
    parts = planned(capsys, *options)[1]["ways"]["speed"]["parts"]
    assert parts["weights"] == pytest.approx(2 * 8030261248, rel=1e-3)
    assert parts["optimizer"] == pytest.approx(4 * 8030261248, rel=1e-3)
    assert parts["gradients"] == pytest.approx(2 * 8030261248, rel=1e-3)
