"""Makes tests/parity/goldens/roles: which tokens count when other roles than the assistant are trained on.

    python tests/parity/make-role-goldens.py            (versions: requirements.txt beside this file)

The Rust test crates/model/tests/roles.rs reads them. The masks are those of transformers' own
apply_chat_template(return_assistant_tokens_mask=True): the templates, written for this test in the manner of well-known ones,
put {% generation %} around what counts of every role that the variable `train_on` names. (No content without a terminator ends
with a character of several tokens: transformers' mask leaves out all of them but the first, where ours counts the character.)

goldens/roles/<template>/    tokenizer files and cases.json (messages, and for each choice of roles: text, ids, mask)
"""

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

GOLDENS = Path(__file__).parent / "goldens" / "roles"

TEMPLATES = {
    # ChatML with tools: content is stripped, what a tool gave back stands in tags
    "tools": dict(
        template="""{%- set train_on = train_on or ['assistant'] %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'tool' %}
        {{- '<tool_response>\\n' }}
    {%- endif %}
    {%- set close = '\\n</tool_response>' if message.role == 'tool' else '' %}
    {%- if message.role in train_on %}
        {%- generation %}{{- message.content | trim }}{%- if not close %}{{- '<|im_end|>' }}{%- endif %}{%- endgeneration %}
        {%- if close %}{{- close + '<|im_end|>' }}{%- endif %}
    {%- else %}
        {{- (message.content | trim) + close + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}""",
        eos="<|im_end|>"),
    # instructions inside the first turn of the user, an end token for answers alone, spaces stripped and put
    "inst": dict(
        template="""{%- set train_on = train_on or ['assistant'] %}
{%- set system = messages[0].content | trim if messages[0].role == 'system' else '' %}
{%- set rest = messages[1:] if messages[0].role == 'system' else messages %}
{%- for message in rest %}
    {%- if message.role == 'user' %}
        {{- '<s>[INST] ' }}
        {%- if loop.first and system %}
            {{- '<<SYS>>\\n' }}
            {%- if 'system' in train_on %}
                {%- generation %}{{- system }}{%- endgeneration %}
            {%- else %}
                {{- system }}
            {%- endif %}
            {{- '\\n<</SYS>>\\n\\n' }}
        {%- endif %}
        {%- if 'user' in train_on %}
            {%- generation %}{{- message.content | trim }}{%- endgeneration %}
        {%- else %}
            {{- message.content | trim }}
        {%- endif %}
        {{- ' [/INST]' }}
    {%- elif message.role == 'assistant' %}
        {%- if 'assistant' in train_on %}
            {%- generation %}{{- ' ' + (message.content | trim) + ' </s>' }}{%- endgeneration %}
        {%- else %}
            {{- ' ' + (message.content | trim) + ' </s>' }}
        {%- endif %}
    {%- else %}
        {{- raise_exception('only system, user and assistant') }}
    {%- endif %}
{%- endfor %}""",
        eos="</s>"),
}

CONVERSATIONS = [
    [("user", "  How many days of leave do I have? "), ("assistant", " You have 28 days.\n")],
    [("system", " Answer briefly. "), ("user", "1 + 1"), ("assistant", "2"), ("user", "Grüße – 東京? "), ("assistant", "👋 Ça va.")],
    [("user", "weather?"), ("assistant", "call(weather)"), ("tool", '{"t": "21 °C"}\n'), ("assistant", "It is 21 °C."), ("user", "weather?"),
     ("assistant", "call(weather)"), ("tool", "a"), ("tool", "b"), ("assistant", "a and b")],
]
ROLES = [["assistant"], ["user"], ["user", "assistant"], ["system"], ["tool"], ["system", "user", "assistant", "tool"]]


def make(name, spec):
    folder = GOLDENS / name
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    base.post_processor = processors.ByteLevel(trim_offsets=False)
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    base.train_from_iterator([text for turns in CONVERSATIONS for _, text in turns] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=base, bos_token="<s>", eos_token=spec["eos"])
    tokenizer.chat_template = spec["template"]
    tokenizer.save_pretrained(folder)
    cases = []
    for turns in CONVERSATIONS:
        messages = [dict(role=role, content=content) for role, content in turns]
        for roles in ROLES:
            try:
                encoded = tokenizer.apply_chat_template(
                    messages, return_dict=True, return_assistant_tokens_mask=True, train_on=roles)
            except Exception as error:
                assert "only system" in str(error), error
                continue
            cases.append(dict(messages=messages, train_on=roles, ids=encoded["input_ids"], mask=encoded["assistant_masks"]))
    (folder / "cases.json").write_text(json.dumps(cases, ensure_ascii=False, separators=(",", ":")) + "\n")


def main():
    shutil.rmtree(GOLDENS, ignore_errors=True)
    for name, spec in TEMPLATES.items():
        make(name, spec)
    for path in sorted(GOLDENS.rglob("*")):
        if path.is_file():
            print(path.relative_to(GOLDENS), path.stat().st_size)


if __name__ == "__main__":
    main()
