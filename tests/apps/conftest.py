"""A model and its tokenizer that answer with printable text and never end by themselves, and a run's folder."""

from pathlib import Path

import pytest
import torch
import yaml

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}<|assistant|>"
    "{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% else %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level, with control tokens right beside the text, so that tokenising the whole rendering gives the ids of its parts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        ["the cat sat on the mat and the dog ran"] * 3,
        trainers.BpeTrainer(
            vocab_size=290, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>", additional_special_tokens=special[1:])
    made.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="session")
def model(tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.4,
            max_position_embeddings=4096,
            bos_token_id=None,
            eos_token_id=0,
        )
    )
    with torch.no_grad():  # says printable ASCII only, and never ends by itself
        for token in range(len(tokenizer)):
            text = tokenizer.decode([token])
            if not (text.isascii() and text.isprintable() and token > 3):
                made.lm_head.weight[token] = 0
    return made.eval()


@pytest.fixture(scope="session")
def write_run():
    """Make a folder look like a run's, without a result."""

    def write(run: Path, model: Path, **overrides):
        run.mkdir(exist_ok=True)
        settings = {
            "model": str(model),
            "revision": None,
            "trust_remote_code": None,
            "quantize": None,
            "sampling": {"max_new_tokens": 99},
        } | overrides
        config = {"model": settings, "data": {"template": None, "system": "the mat"}, "trainer": {"precision": "32-true"}}
        (run / "config.yaml").write_text(yaml.safe_dump(config))

    return write
