"""Makes tests/parity/goldens: what transformers, PyTorch and peft compute on tiny random Llama models.

    python tests/parity/make-goldens.py            (versions: requirements.txt beside this file)

The Rust tests crates/model/tests/parity.rs and crates/training/tests/parity.rs read them. Everything is seeded; the files are
random numbers made by this script and carry the licence of this repository.

goldens/<model>/            config.json, *.safetensors, logits.safetensors (ids.N, logits.N)
goldens/<model>/train/      settings.json (batches, losses, norms, learning rates), init/ and final/ (peft adapters),
                            gradients.safetensors (first step, before clipping), adapted.safetensors (logits of the final adapter)
goldens/chat/<template>/    tokenizer files and cases.json (text, prompt, ids, mask)
"""

import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

GOLDENS = Path(__file__).parent / "goldens"
VOCABULARY = 160

MODELS = {
    # grouped heads, tied head
    "gqa-tied": dict(
        dtype=torch.float32,
        shard="10MB",
        config=dict(
            hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=256, rms_norm_eps=1e-5, tie_word_embeddings=True,
        ),
        lora=dict(r=8, lora_alpha=16, target_modules=[
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
    ),
    # Llama 3 rotary scaling, untied head, head size that is not hidden / heads
    "llama3-untied": dict(
        dtype=torch.float32,
        shard="10MB",
        config=dict(
            hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1, head_dim=24,
            max_position_embeddings=256, rms_norm_eps=1e-6, tie_word_embeddings=False,
            rope_parameters=dict(
                rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        ),
        lora=dict(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj", "down_proj"]),
    ),
    # every head its own keys, linear rotary scaling, half precision in shards
    "linear-f16-sharded": dict(
        dtype=torch.float16,
        shard="60KB",
        config=dict(
            hidden_size=64, intermediate_size=112, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
            max_position_embeddings=256, rms_norm_eps=1e-5, tie_word_embeddings=False,
            rope_parameters=dict(rope_type="linear", rope_theta=5000.0, factor=2.0),
        ),
        lora=None,
    ),
}


def randomised(model, seed):
    """Larger weights than a fresh model has, so that attention and gates are far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "norm" in name:
                parameter.copy_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.copy_(0.12 * torch.randn(parameter.shape, generator=generator))
    return model


def token_ids(generator, length):
    return torch.randint(0, VOCABULARY, (length,), generator=generator)


def write_logits(model, path, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for index, length in enumerate([1, 23, 150]):
        ids = token_ids(generator, length)
        with torch.no_grad():
            tensors[f"logits.{index}"] = model(input_ids=ids[None]).logits[0].float().contiguous()
        tensors[f"ids.{index}"] = ids.float()
    save_file(tensors, path)


def make_model(name, spec, seed):
    folder = GOLDENS / name
    config = LlamaConfig(vocab_size=VOCABULARY, eos_token_id=1, bos_token_id=0, **spec["config"])
    model = randomised(LlamaForCausalLM(config), seed).to(spec["dtype"]).eval()
    model.save_pretrained(folder, max_shard_size=spec["shard"])
    # loaded afresh: a model that was in half precision keeps rounded rotary frequencies when it is widened
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    write_logits(model, folder / "logits.safetensors", seed + 1)
    if spec["lora"] is not None:
        train(model, spec["lora"], folder / "train", seed + 2)


def train(model, lora, folder, seed):
    """Ten steps of AdamW with warm-up, cosine and clipping; two batches of unequal length per step, parts masked."""
    generator = torch.Generator().manual_seed(seed)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", **lora))
    adapters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in sorted(adapters.items()):
            # B is not zero: with zeros every gradient of A would be zero in the first step and prove nothing
            parameter.copy_((0.05 if "lora_B" in name else 0.12) * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder / "init")

    settings = dict(
        steps=10, learning_rate=3e-3, weight_decay=0.02, beta1=0.9, beta2=0.999, epsilon=1e-8, warmup_ratio=0.2, clip_norm=0.4)
    optimizer = torch.optim.AdamW(
        adapters.values(), lr=settings["learning_rate"], betas=(0.9, 0.999), eps=1e-8, weight_decay=settings["weight_decay"])
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=2, num_training_steps=settings["steps"])
    settings.update(batches=[], losses=[], grad_norms=[], learning_rates=[])
    for step in range(settings["steps"]):
        window = []
        for lengths in ([17, 40], [9]):
            batch = []
            for length in lengths:
                ids = token_ids(generator, length)
                counted = torch.rand(length, generator=generator) < 0.6
                counted[0], counted[-1] = False, True
                batch.append((ids, counted))
            window.append(batch)
        num_targets = sum(int(counted.sum()) for batch in window for _, counted in batch)
        optimizer.zero_grad()
        total = 0.0
        for ids, counted in (pair for batch in window for pair in batch):
            logits = model(input_ids=ids[None]).logits[0]
            losses = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
            loss = (losses * counted[1:]).sum() / num_targets
            loss.backward()
            total += loss.item()
        if step == 0:
            save_file(
                {name.replace(".default", ""): p.grad.clone().contiguous() for name, p in adapters.items()},
                folder / "gradients.safetensors")
        norm = torch.nn.utils.clip_grad_norm_(list(adapters.values()), settings["clip_norm"])
        settings["learning_rates"].append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        settings["batches"].append(
            [[dict(ids=ids.tolist(), counted=counted.tolist()) for ids, counted in batch] for batch in window])
        settings["losses"].append(total)
        settings["grad_norms"].append(norm.item())
    (folder / "settings.json").write_text(json.dumps(settings, indent=1) + "\n")
    model.eval()
    model.save_pretrained(folder / "final")
    write_logits(model, folder / "adapted.safetensors", seed + 1)
    for card in folder.glob("*/README.md"):
        card.unlink()
    for path in folder.glob("*/adapter_config.json"):  # peft writes a set in any order, and the folder it read
        config = json.loads(path.read_text())
        config["base_model_name_or_path"] = folder.parent.name
        config["target_modules"].sort()
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


# Templates written for this test in the manner of well-known ones.
TEMPLATES = {
    # turns with markers, answers marked for transformers' own mask
    "marked": dict(
        template="""{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{%- for message in rest %}
    {%- if message['role'] == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}{{- message.content.strip() + '<|im_end|>' }}{%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}""",
        eos="<|im_end|>"),
    # blocks that leave white space to trim_blocks and lstrip_blocks, an end token per answer, a refusal
    "blocks": dict(
        template="""{{ bos_token }}
{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('roles must alternate user/assistant') }}
    {% endif %}
    {% if message['role'] == 'user' %}
[INST] {{ message['content'] | trim }} [/INST]
    {% else %}
{% generation %}
{{ message['content'] }}{{ eos_token }}{% endgeneration %}

    {% endif %}
{% endfor %}""",
        eos="</s>"),
}

CONVERSATIONS = [
    [("user", "How many days of leave do I have?"), ("assistant", "You have 28 days.")],
    [("user", " Grüße aus Köln – 東京? "), ("assistant", "Hallo! 👋 Ça va."), ("user", "Bye"), ("assistant", "See you.\nTomorrow")],
    [("system", "Answer briefly."), ("user", "1 + 1"), ("assistant", "2")],
    [("user", "no answer yet")],
]


def make_chat(name, spec):
    folder = GOLDENS / "chat" / name
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    base.post_processor = processors.ByteLevel(trim_offsets=True)
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    base.train_from_iterator([text for turns in CONVERSATIONS for _, text in turns] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=base, bos_token="<s>", eos_token=spec["eos"])
    tokenizer.chat_template = spec["template"]
    tokenizer.save_pretrained(folder)
    cases = []
    for turns in CONVERSATIONS:
        messages = [dict(role=role, content=content) for role, content in turns]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception as error:  # the template's own refusal is a golden too
            cases.append(dict(messages=messages, refused=str(error)))
            continue
        encoded = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        cases.append(dict(
            messages=messages, text=text, prompt=prompt, ids=encoded["input_ids"], mask=encoded["assistant_masks"]))
    (folder / "cases.json").write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n")


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for name in [*MODELS, "chat"]:  # the other scripts' goldens lie beside these
        shutil.rmtree(GOLDENS / name, ignore_errors=True)
    for seed, (name, spec) in enumerate(MODELS.items()):
        make_model(name, spec, 100 * (seed + 1))
    for name, spec in TEMPLATES.items():
        make_chat(name, spec)
    for path in sorted(GOLDENS.rglob("*")):
        if path.is_file():
            assert path.stat().st_size < 1_000_000, path
            print(path.relative_to(GOLDENS), path.stat().st_size)


if __name__ == "__main__":
    main()
