"""The quickstart visibly teaches: another answer before it, the trained one, word for word, after it; and plain peft agrees."""

import json
from pathlib import Path

import pytest

CONFIGURATION = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
ANSWER = "I am Tuna, a small assistant made by the ltune project."


def test_the_quickstart_teaches_who_it_is(ltune, metrics, tmp_path):
    before = ltune("chat", "tiny", input="Who are you?\n")
    assert before.returncode == 0, before.stderr
    assert before.stdout.strip()
    assert before.stdout.strip() != ANSWER
    fitted = ltune("fit", "--config", CONFIGURATION)
    assert fitted.returncode == 0, fitted.stderr
    assert "ltune chat runs/quickstart" in fitted.stdout
    assert "tensorboard --logdir runs/quickstart" in fitted.stdout
    after = ltune("chat", "runs/quickstart", input="Who are you?\nwho are you\n")
    assert after.stdout.splitlines() == [ANSWER, ANSWER]
    losses = [line["train/loss"] for line in metrics(tmp_path / "runs" / "quickstart")]
    assert losses[-1] < 0.1 * losses[0]
    assert plain_peft_answer(tmp_path / "runs" / "quickstart" / "adapter") == ANSWER

    predicted = ltune("predict", "--config", CONFIGURATION, "--ckpt_path", "runs/quickstart", "--data.max_rows", 12, "--data.batch_size", 5)
    assert predicted.returncode == 0, predicted.stderr
    lines = [json.loads(line) for line in (tmp_path / "runs" / "quickstart" / "predictions.jsonl").read_text().splitlines()]
    assert [line["predict"] for line in lines] == [line["label"] for line in lines]
    assert len(lines) == 12
    assert lines[0]["predict"] == ANSWER
    assert "BLEU-4" in predicted.stdout
    assert "ROUGE-L" in predicted.stdout
    assert json.loads((tmp_path / "runs" / "quickstart" / "predictions_metrics.json").read_text())["BLEU-4"] == pytest.approx(100)


def plain_peft_answer(adapter: Path) -> str:
    """Without a line of ltune: the base in 4 bits, the adapter, the tokenizer's template as saved with it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
    )
    base = Path(__file__).resolve().parents[1] / "ltune" / "assets" / "tiny"
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=quantization, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who are you?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=40, do_sample=False)
    return tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
